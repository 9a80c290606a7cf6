# Written by deploy/forms.py from deploy/data.yaml; do not edit.

locals {
  parameters = {
    TablePrefix        = var.table_prefix
    ChannelsStreamArn  = var.channels_stream_arn
    KmsKeyArn          = var.kms_key_arn
    DeletionProtection = tostring(var.deletion_protection)
    TopicShards        = tostring(var.topic_shards)
  }
}
