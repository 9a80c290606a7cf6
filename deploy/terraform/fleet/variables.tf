# Written by deploy/forms.py from deploy/template.yaml; do not edit.

variable "compute" {
  type        = string
  description = "What nodes run on: instances of EC2, or tasks of ECS on Fargate. An update that changes it starts the others, moves the clients, and then ends those that were there."
  default     = "ec2"
  nullable    = false

  validation {
    condition     = contains(["ec2", "fargate"], var.compute)
    error_message = "compute must be one of ec2, fargate."
  }
}

variable "artifact_bucket" {
  type        = string
  description = "S3 bucket, in this region, with what deploy/build.py built."
  nullable    = false

  validation {
    condition     = can(regex("^(?:[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])$", var.artifact_bucket))
    error_message = "artifact_bucket must match [a-z0-9][a-z0-9.-]{1,61}[a-z0-9]."
  }
}

variable "stream_lambda_key" {
  type        = string
  description = "Key of stream_lambda-<sha256>.zip, as build.py printed it."
  nullable    = false

  validation {
    condition     = can(regex("^(?:[A-Za-z0-9/._-]*stream_lambda-[0-9a-f]{64}\\.zip)$", var.stream_lambda_key))
    error_message = "stream_lambda_key must match [A-Za-z0-9/._-]*stream_lambda-[0-9a-f]{64}\\.zip."
  }
}

variable "reaper_lambda_key" {
  type        = string
  description = "Key of reaper_lambda-<sha256>.zip, as build.py printed it."
  nullable    = false

  validation {
    condition     = can(regex("^(?:[A-Za-z0-9/._-]*reaper_lambda-[0-9a-f]{64}\\.zip)$", var.reaper_lambda_key))
    error_message = "reaper_lambda_key must match [A-Za-z0-9/._-]*reaper_lambda-[0-9a-f]{64}\\.zip."
  }
}

variable "events_lambda_key" {
  type        = string
  description = "With EventsTargetArn only. Key of events_lambda-<sha256>.zip, as build.py printed it."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|[A-Za-z0-9/._-]*events_lambda-[0-9a-f]{64}\\.zip)$", var.events_lambda_key))
    error_message = "events_lambda_key must match |[A-Za-z0-9/._-]*events_lambda-[0-9a-f]{64}\\.zip."
  }
}

variable "release_key" {
  type        = string
  description = "Instances only. Key of release-<sha256>.tar, as build.py printed it, for the architecture of InstanceType."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|[A-Za-z0-9/._-]*release-[0-9a-f]{64}\\.tar)$", var.release_key))
    error_message = "release_key must match |[A-Za-z0-9/._-]*release-[0-9a-f]{64}\\.tar."
  }
}

variable "config_key" {
  type        = string
  description = "Instances only. Key of roomcast-<sha256>.toml, as build.py --config printed it: namespaces and other options. Empty: defaults."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|[A-Za-z0-9/._-]*roomcast-[0-9a-f]{64}\\.toml)$", var.config_key))
    error_message = "config_key must match |[A-Za-z0-9/._-]*roomcast-[0-9a-f]{64}\\.toml."
  }
}

variable "secret_arn" {
  type        = string
  description = "Secret of Secrets Manager, a JSON object of environment variables such as ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY; encrypted with the account's own key aws/secretsmanager."
  nullable    = false

  validation {
    condition     = can(regex("^(?:arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+)$", var.secret_arn))
    error_message = "secret_arn must match arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+."
  }
}

variable "data_stack" {
  type        = string
  description = "Name of the stack of deploy/data.yaml whose tables and topic are used."
  nullable    = false

  validation {
    condition     = can(regex("^(?:[A-Za-z][A-Za-z0-9-]{0,127})$", var.data_stack))
    error_message = "data_stack must match [A-Za-z][A-Za-z0-9-]{0,127}."
  }
}

variable "queue_prefix" {
  type        = string
  description = "What names of queues begin with, before the stack's name and an underscore (aws.queue_prefix is all three, at most 40 characters)."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:[A-Za-z0-9-]{0,30})$", var.queue_prefix))
    error_message = "queue_prefix must match [A-Za-z0-9-]{0,30}."
  }
}

variable "log_generation" {
  type        = string
  description = "Change it after the tables were restored from a backup (aws.log_generation)."
  default     = "0"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[0-9a-z]{1,8})$", var.log_generation))
    error_message = "log_generation must match [0-9a-z]{1,8}."
  }
}

variable "vpc_id" {
  type        = string
  description = "An existing VPC with DNS support and DNS host names on. Empty: a new one is made, over two zones."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|vpc-[0-9a-f]+)$", var.vpc_id))
    error_message = "vpc_id must match |vpc-[0-9a-f]+."
  }
}

variable "vpc_cidr" {
  type        = string
  description = "Addresses of a new VPC, at least a /22; each subnet gets a /24 of them."
  default     = "10.0.0.0/16"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[0-9.]+/(1[6-9]|2[0-2]))$", var.vpc_cidr))
    error_message = "vpc_cidr must match [0-9.]+/(1[6-9]|2[0-2])."
  }
}

variable "private_subnet_ids" {
  type        = list(string)
  description = "Existing VPC only. Subnets of the instances, one a zone, two or more, with commas between them."
  default     = []
  nullable    = false

  validation {
    condition     = can(regex("^(?:|subnet-[0-9a-f]+(,subnet-[0-9a-f]+)+)$", join(",", var.private_subnet_ids)))
    error_message = "private_subnet_ids must match |subnet-[0-9a-f]+(,subnet-[0-9a-f]+)+."
  }
}

variable "public_subnet_ids" {
  type        = list(string)
  description = "Existing VPC with an internet-facing load balancer only. Its subnets, in the same zones."
  default     = []
  nullable    = false

  validation {
    condition     = can(regex("^(?:|subnet-[0-9a-f]+(,subnet-[0-9a-f]+)+)$", join(",", var.public_subnet_ids)))
    error_message = "public_subnet_ids must match |subnet-[0-9a-f]+(,subnet-[0-9a-f]+)+."
  }
}

variable "private_route_table_ids" {
  type        = list(string)
  description = "Existing VPC of roomcast alone only (DedicatedVpc). Route tables of the private subnets, for gateway endpoints that allow roomcast's calls and no others. Empty: the VPC has endpoints for S3 and DynamoDB."
  default     = []
  nullable    = false

  validation {
    condition     = can(regex("^(?:|rtb-[0-9a-f]+(,rtb-[0-9a-f]+)*)$", join(",", var.private_route_table_ids)))
    error_message = "private_route_table_ids must match |rtb-[0-9a-f]+(,rtb-[0-9a-f]+)*."
  }
}

variable "endpoint_security_group_id" {
  type        = string
  description = "Security group of interface endpoints that the VPC already has (with private DNS), for all services that the template makes endpoints for otherwise. Empty: they are made, in an existing VPC only if it is roomcast's alone (DedicatedVpc)."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|sg-[0-9a-f]+)$", var.endpoint_security_group_id))
    error_message = "endpoint_security_group_id must match |sg-[0-9a-f]+."
  }
}

variable "dedicated_vpc" {
  type        = bool
  description = "Existing VPC only. true says that nothing but this deployment uses it. Endpoints that are made here take over the names and routes of AWS services for the whole VPC, and refuse everything that roomcast does not call."
  default     = false
  nullable    = false
}

variable "s3_prefix_list_id" {
  type        = string
  description = "AWS's list of S3's addresses in this region, com.amazonaws.REGION.s3."
  nullable    = false

  validation {
    condition     = can(regex("^(?:pl-[0-9a-f]+)$", var.s3_prefix_list_id))
    error_message = "s3_prefix_list_id must match pl-[0-9a-f]+."
  }
}

variable "dynamo_db_prefix_list_id" {
  type        = string
  description = "AWS's list of DynamoDB's addresses in this region, com.amazonaws.REGION.dynamodb."
  nullable    = false

  validation {
    condition     = can(regex("^(?:pl-[0-9a-f]+)$", var.dynamo_db_prefix_list_id))
    error_message = "dynamo_db_prefix_list_id must match pl-[0-9a-f]+."
  }
}

variable "scheme" {
  type        = string
  description = "Who can reach the load balancer, the only thing that listens for clients."
  default     = "internal"
  nullable    = false

  validation {
    condition     = contains(["internal", "internet-facing"], var.scheme)
    error_message = "scheme must be one of internal, internet-facing."
  }
}

variable "client_cidr" {
  type        = string
  description = "From which addresses it takes connections; 0.0.0.0/0 for everybody's."
  default     = "10.0.0.0/8"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[0-9.]+/[0-9]{1,2})$", var.client_cidr))
    error_message = "client_cidr must match [0-9.]+/[0-9]{1,2}."
  }
}

variable "api_cidr" {
  type        = string
  description = "From which of those addresses back ends may use the HTTP API; clients need not."
  default     = "10.0.0.0/8"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[0-9.]+/[0-9]{1,2})$", var.api_cidr))
    error_message = "api_cidr must match [0-9.]+/[0-9]{1,2}."
  }
}

variable "load_balancer_cidrs" {
  type        = list(string)
  description = "In an existing VPC: networks of the load balancer's subnets, with commas, so that nodes know clients' addresses (client.trusted_proxies). Nobody else may have an address in them. In a new VPC they are known."
  default     = []
  nullable    = false

  validation {
    condition     = can(regex("^(?:|[0-9./,]+)$", join(",", var.load_balancer_cidrs)))
    error_message = "load_balancer_cidrs must match |[0-9./,]+."
  }
}

variable "certificate_arn" {
  type        = string
  description = "Certificate of the load balancer, in ACM, in this region."
  nullable    = false

  validation {
    condition     = can(regex("^(?:arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+)$", var.certificate_arn))
    error_message = "certificate_arn must match arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+."
  }
}

variable "domain_name" {
  type        = string
  description = "Name that clients use, which the certificate covers. Empty, the load balancer's own."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|[a-z0-9.-]+)$", var.domain_name))
    error_message = "domain_name must match |[a-z0-9.-]+."
  }
}

variable "hosted_zone_id" {
  type        = string
  description = "Hosted zone of Route 53 in which DomainName becomes an alias of the load balancer. Empty, that is yours to do."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|Z[A-Z0-9]+)$", var.hosted_zone_id))
    error_message = "hosted_zone_id must match |Z[A-Z0-9]+."
  }
}

variable "redirect_http" {
  type        = bool
  description = "Whether the load balancer also listens on port 80, and sends on to HTTPS."
  default     = false
  nullable    = false
}

variable "access_logs" {
  type        = bool
  description = "Whether the load balancer logs each request, with its address and its whole path."
  default     = true
  nullable    = false
}

variable "access_log_bucket" {
  type        = string
  description = "Bucket for these logs, with a policy that lets the load balancer write them. Empty: the stack makes one."
  default     = ""
  nullable    = false
}

variable "requests_per_address" {
  type        = number
  description = "Requests of one address in five minutes, beyond which WAF answers with 429. A WebSocket is one; back ends do not count. 10 at least; 0: no WAF."
  default     = 10000
  nullable    = false

  validation {
    condition     = var.requests_per_address >= 0
    error_message = "requests_per_address must be 0 or more."
  }

  validation {
    condition     = var.requests_per_address <= 2000000000
    error_message = "requests_per_address must be 2000000000 or less."
  }
}

variable "instance_type" {
  type        = string
  description = "Of the architecture that ReleaseKey and ImageId are for. A core a process and 2 GiB serve some 5,000 clients."
  default     = "c7g.medium"
  nullable    = false
}

variable "image_id" {
  type        = string
  description = "Instances only. An image of Amazon Linux 2023, of the architecture that ReleaseKey is for. Another one replaces the instances."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|ami-([0-9a-f]{8}|[0-9a-f]{17}))$", var.image_id))
    error_message = "image_id must match |ami-([0-9a-f]{8}|[0-9a-f]{17})."
  }
}

variable "image_repository" {
  type        = string
  description = "Tasks only. Name of the repository of ECR, in this account and region, that the container image is in."
  default     = "roomcast"
  nullable    = false

  validation {
    condition     = can(regex("^(?:[a-z0-9][a-z0-9._/-]{1,255})$", var.image_repository))
    error_message = "image_repository must match [a-z0-9][a-z0-9._/-]{1,255}."
  }
}

variable "image_digest" {
  type        = string
  description = "Tasks only. Digest of that image, or of its index. Another one replaces the tasks."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|sha256:[0-9a-f]{64})$", var.image_digest))
    error_message = "image_digest must match |sha256:[0-9a-f]{64}."
  }
}

variable "task_architecture" {
  type        = string
  description = "One that the container image is for."
  default     = "ARM64"
  nullable    = false

  validation {
    condition     = contains(["ARM64", "X86_64"], var.task_architecture)
    error_message = "task_architecture must be one of ARM64, X86_64."
  }
}

variable "tasks_now" {
  type        = number
  description = "Number of tasks that each update sets, for a deployment that moves clients from instances. 0: what scaling has set, and at first MinInstances."
  default     = 0
  nullable    = false

  validation {
    condition     = var.tasks_now >= 0
    error_message = "tasks_now must be 0 or more."
  }
}

variable "task_cpu" {
  type        = number
  description = "1024 is a core. A process uses one."
  default     = 1024
  nullable    = false

  validation {
    condition     = contains([512, 1024, 2048, 4096, 8192, 16384], var.task_cpu)
    error_message = "task_cpu must be one of 512, 1024, 2048, 4096, 8192, 16384."
  }
}

variable "task_memory" {
  type        = number
  description = "MiB, as Fargate offers them for TaskCpu: from twice to seven times as much, in its steps. A core a process and 2 GiB serve some 5,000 clients."
  default     = 2048
  nullable    = false

  validation {
    condition     = var.task_memory >= 1024
    error_message = "task_memory must be 1024 or more."
  }

  validation {
    condition     = var.task_memory <= 122880
    error_message = "task_memory must be 122880 or less."
  }
}

variable "processes" {
  type        = number
  description = "Nodes on each instance or task, which share its port. 0 is one for each core."
  default     = 1
  nullable    = false

  validation {
    condition     = var.processes >= 0
    error_message = "processes must be 0 or more."
  }

  validation {
    condition     = var.processes <= 256
    error_message = "processes must be 256 or less."
  }
}

variable "min_instances" {
  type        = number
  description = "Fewest instances or tasks. Two, so that one may fail."
  default     = 2
  nullable    = false

  validation {
    condition     = var.min_instances >= 1
    error_message = "min_instances must be 1 or more."
  }
}

variable "max_instances" {
  type        = number
  description = "Most instances or tasks. A bound on cost."
  default     = 10
  nullable    = false

  validation {
    condition     = var.max_instances >= 1
    error_message = "max_instances must be 1 or more."
  }
}

variable "desired_instances" {
  type        = number
  description = "Instances to begin with. Scaling changes their number; an update of the stack does not, unless this changes. Tasks begin with MinInstances."
  default     = 2
  nullable    = false

  validation {
    condition     = var.desired_instances >= 1
    error_message = "desired_instances must be 1 or more."
  }
}

variable "target_connections" {
  type        = number
  description = "Connections of a process, on average, that scaling aims at."
  default     = 4000
  nullable    = false

  validation {
    condition     = var.target_connections >= 1
    error_message = "target_connections must be 1 or more."
  }
}

variable "target_cpu_percent" {
  type        = number
  description = "CPU of an instance or task, on average, that scaling aims at."
  default     = 50
  nullable    = false

  validation {
    condition     = var.target_cpu_percent >= 10
    error_message = "target_cpu_percent must be 10 or more."
  }

  validation {
    condition     = var.target_cpu_percent <= 90
    error_message = "target_cpu_percent must be 90 or less."
  }
}

variable "consumer_queue_arns" {
  type        = list(string)
  description = "Queues of SQS, in this region, that nodes receive from as consumers (docs/consumers.md); ARNs with commas between them. Empty: none."
  default     = []
  nullable    = false

  validation {
    condition     = can(regex("^(?:|arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?(,arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?)*)$", join(",", var.consumer_queue_arns)))
    error_message = "consumer_queue_arns must match |arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?(,arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?)*."
  }
}

variable "events_target_arn" {
  type        = string
  description = "Bus of EventBridge or queue of SQS, in this region, that is told who came and went and what was published, as far as nodes' options want it (docs/events.md). Empty: nobody is told, and nothing is made for it."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|arn:[a-z-]+:events:[a-z0-9-]+:[0-9]{12}:event-bus/[A-Za-z0-9/_.-]+|arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?)$", var.events_target_arn))
    error_message = "events_target_arn must match |arn:[a-z-]+:events:[a-z0-9-]+:[0-9]{12}:event-bus/[A-Za-z0-9/_.-]+|arn:[a-z-]+:sqs:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\\.fifo)?."
  }
}

variable "kms_key_arn" {
  type        = string
  description = "Key of KMS that encrypts queues, logs and what was given up on, with the policy that deploy/README.md has. The same for deploy/data.yaml. Empty: AWS's own keys."
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^(?:|arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)$", var.kms_key_arn))
    error_message = "kms_key_arn must match |arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+."
  }
}

variable "deletion_protection" {
  type        = bool
  description = "Whether the load balancer refuses to be deleted. \"false\" for the first deployment: what refuses cannot be rolled back."
  default     = true
  nullable    = false
}

variable "reserve_reaper" {
  type        = bool
  description = "Whether one concurrent execution is reserved for the reaper. \"false\" for accounts whose limit is still 10 in all: AWS reserves none of those."
  default     = true
  nullable    = false
}

variable "rollout_brake" {
  type        = bool
  description = "Whether an alarm stops the replacement of instances and of the stream Lambda, and rolls the update back. \"false\" to deploy what ends an alarm that is on already."
  default     = true
  nullable    = false
}

variable "log_retention_days" {
  type        = number
  description = "Days that logs are kept."
  default     = 30
  nullable    = false

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days must be one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731."
  }
}

variable "alarm_topic_arn" {
  type        = string
  description = "SNS topic that is told when an alarm goes off or ends; not roomcast's own. \"nobody\": nobody is told that nodes hang."
  nullable    = false

  validation {
    condition     = can(regex("^(?:nobody|arn:[a-z-]+:sns:[a-z0-9-]+:[0-9]{12}:.+)$", var.alarm_topic_arn))
    error_message = "alarm_topic_arn must match nobody|arn:[a-z-]+:sns:[a-z0-9-]+:[0-9]{12}:.+."
  }
}

variable "topic_shards" {
  type        = number
  description = "Number of topic shards that the nodes hear, each with a topic (aws.topic_shards). 1: one topic for all. The data stack has as many at the least. Change it only while PublishToShards is \"false\"."
  default     = 1
  nullable    = false

  validation {
    condition     = contains([1, 2, 4, 8, 16], var.topic_shards)
    error_message = "topic_shards must be one of 1, 2, 4, 8, 16."
  }
}

variable "publish_to_shards" {
  type        = bool
  description = "Whether the stream Lambda publishes to the topic shards. \"true\" only when all nodes hear them: one update after TopicShards."
  default     = false
  nullable    = false
}
