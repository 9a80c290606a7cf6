# What is kept: the stack of deploy/data.yaml. It fits into the call, so nothing is uploaded.

resource "aws_cloudformation_stack" "stack" {
  name          = var.stack_name
  template_body = file("${path.module}/../../data.yaml")
  parameters    = local.parameters
  iam_role_arn  = var.service_role_arn
}

variable "stack_name" {
  type        = string
  description = "Name of the stack. Its exports, which the module fleet imports, begin with it."
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
  description = "For data_stack of the module fleet, which so waits until the data are there."
  value       = aws_cloudformation_stack.stack.name
}
