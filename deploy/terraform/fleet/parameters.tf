# Written by deploy/forms.py from deploy/template.yaml; do not edit.

locals {
  parameters = {
    Compute                 = var.compute
    ArtifactBucket          = var.artifact_bucket
    StreamLambdaKey         = var.stream_lambda_key
    ReaperLambdaKey         = var.reaper_lambda_key
    ReleaseKey              = var.release_key
    ConfigKey               = var.config_key
    SecretArn               = var.secret_arn
    DataStack               = var.data_stack
    QueuePrefix             = var.queue_prefix
    LogGeneration           = var.log_generation
    VpcId                   = var.vpc_id
    VpcCidr                 = var.vpc_cidr
    PrivateSubnetIds        = join(",", var.private_subnet_ids)
    PublicSubnetIds         = join(",", var.public_subnet_ids)
    PrivateRouteTableIds    = join(",", var.private_route_table_ids)
    EndpointSecurityGroupId = var.endpoint_security_group_id
    DedicatedVpc            = tostring(var.dedicated_vpc)
    S3PrefixListId          = var.s3_prefix_list_id
    DynamoDbPrefixListId    = var.dynamo_db_prefix_list_id
    Scheme                  = var.scheme
    ClientCidr              = var.client_cidr
    ApiCidr                 = var.api_cidr
    LoadBalancerCidrs       = join(",", var.load_balancer_cidrs)
    CertificateArn          = var.certificate_arn
    DomainName              = var.domain_name
    HostedZoneId            = var.hosted_zone_id
    RedirectHttp            = tostring(var.redirect_http)
    AccessLogs              = tostring(var.access_logs)
    AccessLogBucket         = var.access_log_bucket
    RequestsPerAddress      = tostring(var.requests_per_address)
    InstanceType            = var.instance_type
    ImageId                 = var.image_id
    ImageRepository         = var.image_repository
    ImageDigest             = var.image_digest
    TaskArchitecture        = var.task_architecture
    TasksNow                = tostring(var.tasks_now)
    TaskCpu                 = tostring(var.task_cpu)
    TaskMemory              = tostring(var.task_memory)
    Processes               = tostring(var.processes)
    MinInstances            = tostring(var.min_instances)
    MaxInstances            = tostring(var.max_instances)
    DesiredInstances        = tostring(var.desired_instances)
    TargetConnections       = tostring(var.target_connections)
    TargetCpuPercent        = tostring(var.target_cpu_percent)
    KmsKeyArn               = var.kms_key_arn
    DeletionProtection      = tostring(var.deletion_protection)
    ReserveReaper           = tostring(var.reserve_reaper)
    RolloutBrake            = tostring(var.rollout_brake)
    LogRetentionDays        = tostring(var.log_retention_days)
    AlarmTopicArn           = var.alarm_topic_arn
    TopicShards             = tostring(var.topic_shards)
    PublishToShards         = tostring(var.publish_to_shards)
  }
}
