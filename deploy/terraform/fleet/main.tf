# What works on the data: the stack of deploy/template.yaml. It is too large to be sent with the
# call, so it goes into the bucket of what was built.

locals {
  template = "${path.module}/../../template.yaml"
}

data "aws_s3_bucket" "artifacts" {
  bucket = var.artifact_bucket
}

resource "aws_s3_object" "template" {
  bucket       = var.artifact_bucket
  key          = "templates/template-${filesha256(local.template)}.yaml"
  source       = local.template
  content_type = "application/yaml"

  # Another template is another key, which must be there before the stack asks for it.
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_cloudformation_stack" "stack" {
  name         = var.stack_name
  template_url = "https://${data.aws_s3_bucket.artifacts.bucket_regional_domain_name}/${aws_s3_object.template.key}"
  parameters   = local.parameters
  capabilities = ["CAPABILITY_IAM"]
  iam_role_arn = var.service_role_arn

  # A roll-out waits between its steps, and rolls back over the same time.
  timeouts {
    create = "2h"
    update = "6h"
    delete = "2h"
  }
}

variable "stack_name" {
  type        = string
  description = "Name of the stack. Names of queues and log groups have it in them."
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,127}$", var.stack_name))
    error_message = "stack_name must match [A-Za-z][A-Za-z0-9-]{0,127}."
  }
}

variable "service_role_arn" {
  type        = string
  description = "Role with whose rights CloudFormation works. None: those of whoever applies."
  default     = null
}

output "stack_name" {
  description = "Name of the stack."
  value       = aws_cloudformation_stack.stack.name
}
