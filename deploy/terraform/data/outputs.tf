# Written by deploy/forms.py from deploy/data.yaml; do not edit.

output "table_prefix" {
  description = "Prefix of the tables' names (aws.table_prefix)."
  value       = aws_cloudformation_stack.stack.outputs["TablePrefix"]
}

output "channels_table" {
  description = "The log's table."
  value       = aws_cloudformation_stack.stack.outputs["ChannelsTable"]
}

output "channels_table_arn" {
  description = "The log's table."
  value       = aws_cloudformation_stack.stack.outputs["ChannelsTableArn"]
}

output "channels_stream_arn" {
  description = "Its stream."
  value       = aws_cloudformation_stack.stack.outputs["ChannelsStreamArn"]
}

output "idempotency_table_arn" {
  description = "Keys of publications."
  value       = aws_cloudformation_stack.stack.outputs["IdempotencyTableArn"]
}

output "nodes_table_arn" {
  description = "Leases of nodes."
  value       = aws_cloudformation_stack.stack.outputs["NodesTableArn"]
}

output "presence_table_arn" {
  description = "Who is in which channel."
  value       = aws_cloudformation_stack.stack.outputs["PresenceTableArn"]
}

output "presence_stream_arn" {
  description = "Its stream, for events."
  value       = aws_cloudformation_stack.stack.outputs["PresenceStreamArn"]
}

output "topic_arn" {
  description = "The topic (aws.topic_arn)."
  value       = aws_cloudformation_stack.stack.outputs["TopicArn"]
}

output "topic_name" {
  description = "Its name."
  value       = aws_cloudformation_stack.stack.outputs["TopicName"]
}

output "shard_topic_arns" {
  description = "Pattern of the topics of topic shards, for policies."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "ShardTopicArns", null)
}

output "topic_shards2" {
  description = "That there are topics for 2 topic shards."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "TopicShards2", null)
}

output "topic_shards4" {
  description = "That there are topics for 4 topic shards."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "TopicShards4", null)
}

output "topic_shards8" {
  description = "That there are topics for 8 topic shards."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "TopicShards8", null)
}

output "topic_shards16" {
  description = "That there are topics for 16 topic shards."
  value       = lookup(aws_cloudformation_stack.stack.outputs, "TopicShards16", null)
}
