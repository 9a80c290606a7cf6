# Written by deploy/forms.py from deploy/template.yaml; do not edit.

output "web_socket_url" {
  description = "What clients connect to."
  value       = aws_cloudformation_stack.stack.outputs["WebSocketUrl"]
}

output "api_url" {
  description = "What back ends publish through."
  value       = aws_cloudformation_stack.stack.outputs["ApiUrl"]
}

output "load_balancer_dns_name" {
  description = "For an alias or CNAME of a domain of yours."
  value       = aws_cloudformation_stack.stack.outputs["LoadBalancerDnsName"]
}

output "auto_scaling_group_name" {
  description = "The fleet."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "AutoScalingGroupName", null)
}

output "service_name" {
  description = "The service of ECS, in the cluster that has the stack's name."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "ServiceName", null)
}

output "instance_security_group_id" {
  description = "For endpoints that the VPC already had; they must let it in on port 443."
  value       = aws_cloudformation_stack.stack.outputs["InstanceSecurityGroupId"]
}

output "instance_log_group_name" {
  description = "Logs of the nodes and of how instances started."
  value       = aws_cloudformation_stack.stack.outputs["InstanceLogGroupName"]
}

output "access_log_bucket_name" {
  description = "Bucket of the load balancer's access logs."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "AccessLogBucketName", null)
}

output "failure_bucket_name" {
  description = "Stream records that were given up on."
  value       = aws_cloudformation_stack.stack.outputs["FailureBucketName"]
}

output "dashboard_url" {
  description = "What is going on."
  value       = aws_cloudformation_stack.stack.outputs["DashboardUrl"]
}
