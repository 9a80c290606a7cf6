// Written by deploy/forms.py from deploy/data.yaml and deploy/template.yaml; do not edit.

/** Parameters of deploy/data.yaml. */
export interface DataParameters {
  /**
   * Prefix of the tables' names (aws.table_prefix). Tells deployments in one account apart.
   * @default "roomcast-"
   */
  readonly tablePrefix?: string;

  /**
   * Stream of the table TablePrefix + channels, when that table and TablePrefix + idempotency are there already: restored from a backup, or kept when their stack was deleted. They are used, and not made. Empty: they are made.
   * @default ""
   */
  readonly channelsStreamArn?: string;

  /**
   * Key of KMS that encrypts tables and topics, with the policy that deploy/README.md has. The same for deploy/template.yaml. Empty: AWS's own keys.
   * @default ""
   */
  readonly kmsKeyArn?: string;

  /**
   * Whether the channels and idempotency tables refuse to be deleted, when they are made here. "false" for the first deployment: what refuses cannot be rolled back.
   * @default true
   */
  readonly deletionProtection?: boolean;

  /**
   * Number of topic shards, each with a topic. At least as many as TopicShards of deploy/template.yaml.
   * @default 1
   */
  readonly topicShards?: 1 | 2 | 4 | 8 | 16;
}

/** Outputs of deploy/data.yaml. */
export type DataOutput =
  | "TablePrefix"
  | "ChannelsTable"
  | "ChannelsTableArn"
  | "ChannelsStreamArn"
  | "IdempotencyTableArn"
  | "NodesTableArn"
  | "PresenceTableArn"
  | "PresenceStreamArn"
  | "TopicArn"
  | "TopicName"
  | "ShardTopicArns"
  | "TopicShards2"
  | "TopicShards4"
  | "TopicShards8"
  | "TopicShards16";

/** Parameters of deploy/template.yaml. */
export interface FleetParameters {
  /**
   * What nodes run on: instances of EC2, or tasks of ECS on Fargate. An update that changes it starts the others, moves the clients, and then ends those that were there.
   * @default "ec2"
   */
  readonly compute?: "ec2" | "fargate";

  /**
   * S3 bucket, in this region, with what deploy/build.py built.
   */
  readonly artifactBucket: string;

  /**
   * Key of stream_lambda-<sha256>.zip, as build.py printed it.
   */
  readonly streamLambdaKey: string;

  /**
   * Key of reaper_lambda-<sha256>.zip, as build.py printed it.
   */
  readonly reaperLambdaKey: string;

  /**
   * With EventsTargetArn only. Key of events_lambda-<sha256>.zip, as build.py printed it.
   * @default ""
   */
  readonly eventsLambdaKey?: string;

  /**
   * Instances only. Key of release-<sha256>.tar, as build.py printed it, for the architecture of InstanceType.
   * @default ""
   */
  readonly releaseKey?: string;

  /**
   * Instances only. Key of roomcast-<sha256>.toml, as build.py --config printed it: namespaces and other options. Empty: defaults.
   * @default ""
   */
  readonly configKey?: string;

  /**
   * Secret of Secrets Manager, a JSON object of environment variables such as ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY; encrypted with the account's own key aws/secretsmanager.
   */
  readonly secretArn: string;

  /**
   * Name of the stack of deploy/data.yaml whose tables and topic are used.
   */
  readonly dataStack: string;

  /**
   * What names of queues begin with, before the stack's name and an underscore (aws.queue_prefix is all three, at most 40 characters).
   * @default ""
   */
  readonly queuePrefix?: string;

  /**
   * Change it after the tables were restored from a backup (aws.log_generation).
   * @default "0"
   */
  readonly logGeneration?: string;

  /**
   * An existing VPC with DNS support and DNS host names on. Empty: a new one is made, over two zones.
   * @default ""
   */
  readonly vpcId?: string;

  /**
   * Addresses of a new VPC, at least a /22; each subnet gets a /24 of them.
   * @default "10.0.0.0/16"
   */
  readonly vpcCidr?: string;

  /**
   * Existing VPC only. Subnets of the instances, one a zone, two or more, with commas between them.
   * @default []
   */
  readonly privateSubnetIds?: string[];

  /**
   * Existing VPC with an internet-facing load balancer only. Its subnets, in the same zones.
   * @default []
   */
  readonly publicSubnetIds?: string[];

  /**
   * Existing VPC of roomcast alone only (DedicatedVpc). Route tables of the private subnets, for gateway endpoints that allow roomcast's calls and no others. Empty: the VPC has endpoints for S3 and DynamoDB.
   * @default []
   */
  readonly privateRouteTableIds?: string[];

  /**
   * Security group of interface endpoints that the VPC already has (with private DNS), for all services that the template makes endpoints for otherwise. Empty: they are made, in an existing VPC only if it is roomcast's alone (DedicatedVpc).
   * @default ""
   */
  readonly endpointSecurityGroupId?: string;

  /**
   * Existing VPC only. true says that nothing but this deployment uses it. Endpoints that are made here take over the names and routes of AWS services for the whole VPC, and refuse everything that roomcast does not call.
   * @default false
   */
  readonly dedicatedVpc?: boolean;

  /**
   * AWS's list of S3's addresses in this region, com.amazonaws.REGION.s3.
   */
  readonly s3PrefixListId: string;

  /**
   * AWS's list of DynamoDB's addresses in this region, com.amazonaws.REGION.dynamodb.
   */
  readonly dynamoDbPrefixListId: string;

  /**
   * Who can reach the load balancer, the only thing that listens for clients.
   * @default "internal"
   */
  readonly scheme?: "internal" | "internet-facing";

  /**
   * From which addresses it takes connections; 0.0.0.0/0 for everybody's.
   * @default "10.0.0.0/8"
   */
  readonly clientCidr?: string;

  /**
   * From which of those addresses back ends may use the HTTP API; clients need not.
   * @default "10.0.0.0/8"
   */
  readonly apiCidr?: string;

  /**
   * In an existing VPC: networks of the load balancer's subnets, with commas, so that nodes know clients' addresses (client.trusted_proxies). Nobody else may have an address in them. In a new VPC they are known.
   * @default []
   */
  readonly loadBalancerCidrs?: string[];

  /**
   * Certificate of the load balancer, in ACM, in this region.
   */
  readonly certificateArn: string;

  /**
   * Name that clients use, which the certificate covers. Empty, the load balancer's own.
   * @default ""
   */
  readonly domainName?: string;

  /**
   * Hosted zone of Route 53 in which DomainName becomes an alias of the load balancer. Empty, that is yours to do.
   * @default ""
   */
  readonly hostedZoneId?: string;

  /**
   * Whether the load balancer also listens on port 80, and sends on to HTTPS.
   * @default false
   */
  readonly redirectHttp?: boolean;

  /**
   * Whether the load balancer logs each request, with its address and its whole path.
   * @default true
   */
  readonly accessLogs?: boolean;

  /**
   * Bucket for these logs, with a policy that lets the load balancer write them. Empty: the stack makes one.
   * @default ""
   */
  readonly accessLogBucket?: string;

  /**
   * Requests of one address in five minutes, beyond which WAF answers with 429. A WebSocket is one; back ends do not count. 10 at least; 0: no WAF.
   * @default 10000
   */
  readonly requestsPerAddress?: number;

  /**
   * Of the architecture that ReleaseKey and ImageId are for. A core a process and 2 GiB serve some 5,000 clients.
   * @default "c7g.medium"
   */
  readonly instanceType?: string;

  /**
   * Instances only. An image of Amazon Linux 2023, of the architecture that ReleaseKey is for. Another one replaces the instances.
   * @default ""
   */
  readonly imageId?: string;

  /**
   * Tasks only. Name of the repository of ECR, in this account and region, that the container image is in.
   * @default "roomcast"
   */
  readonly imageRepository?: string;

  /**
   * Tasks only. Digest of that image, or of its index. Another one replaces the tasks.
   * @default ""
   */
  readonly imageDigest?: string;

  /**
   * One that the container image is for.
   * @default "ARM64"
   */
  readonly taskArchitecture?: "ARM64" | "X86_64";

  /**
   * Number of tasks that each update sets, for a deployment that moves clients from instances. 0: what scaling has set, and at first MinInstances.
   * @default 0
   */
  readonly tasksNow?: number;

  /**
   * 1024 is a core. A process uses one.
   * @default 1024
   */
  readonly taskCpu?: 512 | 1024 | 2048 | 4096 | 8192 | 16384;

  /**
   * MiB, as Fargate offers them for TaskCpu: from twice to seven times as much, in its steps. A core a process and 2 GiB serve some 5,000 clients.
   * @default 2048
   */
  readonly taskMemory?: number;

  /**
   * Nodes on each instance or task, which share its port. 0 is one for each core.
   * @default 1
   */
  readonly processes?: number;

  /**
   * Fewest instances or tasks. Two, so that one may fail.
   * @default 2
   */
  readonly minInstances?: number;

  /**
   * Most instances or tasks. A bound on cost.
   * @default 10
   */
  readonly maxInstances?: number;

  /**
   * Instances to begin with. Scaling changes their number; an update of the stack does not, unless this changes. Tasks begin with MinInstances.
   * @default 2
   */
  readonly desiredInstances?: number;

  /**
   * Connections of a process, on average, that scaling aims at.
   * @default 4000
   */
  readonly targetConnections?: number;

  /**
   * CPU of an instance or task, on average, that scaling aims at.
   * @default 50
   */
  readonly targetCpuPercent?: number;

  /**
   * Queues of SQS, in this region, that nodes receive from as consumers (docs/consumers.md); ARNs with commas between them. Empty: none.
   * @default []
   */
  readonly consumerQueueArns?: string[];

  /**
   * Bus of EventBridge or queue of SQS, in this region, that is told who came and went and what was published, as far as nodes' options want it (docs/events.md). Empty: nobody is told, and nothing is made for it.
   * @default ""
   */
  readonly eventsTargetArn?: string;

  /**
   * Key of KMS that encrypts queues, logs and what was given up on, with the policy that deploy/README.md has. The same for deploy/data.yaml. Empty: AWS's own keys.
   * @default ""
   */
  readonly kmsKeyArn?: string;

  /**
   * Whether the load balancer refuses to be deleted. "false" for the first deployment: what refuses cannot be rolled back.
   * @default true
   */
  readonly deletionProtection?: boolean;

  /**
   * Whether one concurrent execution is reserved for the reaper. "false" for accounts whose limit is still 10 in all: AWS reserves none of those.
   * @default true
   */
  readonly reserveReaper?: boolean;

  /**
   * Whether an alarm stops the replacement of instances and of the stream Lambda, and rolls the update back. "false" to deploy what ends an alarm that is on already.
   * @default true
   */
  readonly rolloutBrake?: boolean;

  /**
   * Days that logs are kept.
   * @default 30
   */
  readonly logRetentionDays?: 1 | 3 | 5 | 7 | 14 | 30 | 60 | 90 | 120 | 150 | 180 | 365 | 400 | 545 | 731;

  /**
   * SNS topic that is told when an alarm goes off or ends; not roomcast's own. "nobody": nobody is told that nodes hang.
   */
  readonly alarmTopicArn: string;

  /**
   * Number of topic shards that the nodes hear, each with a topic (aws.topic_shards). 1: one topic for all. The data stack has as many at the least. Change it only while PublishToShards is "false".
   * @default 1
   */
  readonly topicShards?: 1 | 2 | 4 | 8 | 16;

  /**
   * Whether the stream Lambda publishes to the topic shards. "true" only when all nodes hear them: one update after TopicShards.
   * @default false
   */
  readonly publishToShards?: boolean;
}

/** Outputs of deploy/template.yaml. */
export type FleetOutput =
  | "WebSocketUrl"
  | "ApiUrl"
  | "LoadBalancerDnsName"
  | "AutoScalingGroupName"
  | "ServiceName"
  | "InstanceSecurityGroupId"
  | "InstanceLogGroupName"
  | "AccessLogBucketName"
  | "FailureBucketName"
  | "DashboardUrl";
