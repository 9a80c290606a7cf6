# Written by deploy/forms.py from deploy/data.yaml; do not edit.

variable "table_prefix" {
  type        = string
  description = "Prefix of the tables' names (aws.table_prefix). Tells deployments in one account apart."
  default     = "roomcast-"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[A-Za-z0-9_.-]{1,200})$", var.table_prefix))
    error_message = "table_prefix must match [A-Za-z0-9_.-]{1,200}."
  }
}

variable "channels_stream_arn" {
  type        = string
  description = "Stream of the table TablePrefix + channels, when that table and TablePrefix + idempotency are there already: restored from a backup, or kept when their stack was deleted. They are used, and not made. Empty: they are made."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]+/stream/.+)$", var.channels_stream_arn))
    error_message = "channels_stream_arn must match |arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]+/stream/.+."
  }
}

variable "kms_key_arn" {
  type        = string
  description = "Key of KMS that encrypts tables and topics, with the policy that deploy/README.md has. The same for deploy/template.yaml. Empty: AWS's own keys."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)$", var.kms_key_arn))
    error_message = "kms_key_arn must match |arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+."
  }
}

variable "deletion_protection" {
  type        = bool
  description = "Whether the channels and idempotency tables refuse to be deleted, when they are made here. \"false\" for the first deployment: what refuses cannot be rolled back."
  default     = true
  nullable    = false
}

variable "topic_shards" {
  type        = number
  description = "Number of topic shards, each with a topic. At least as many as TopicShards of deploy/template.yaml."
  default     = 1
  nullable    = false

  validation {
    condition     = contains([1, 2, 4, 8, 16], var.topic_shards)
    error_message = "topic_shards must be one of 1, 2, 4, 8, 16."
  }
}
