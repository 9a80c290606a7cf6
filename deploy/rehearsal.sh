#!/usr/bin/env bash
# The first day in an account: deploys everything, looks at it, loads it, kills a node, rolls, restores, and removes it
# again. Each step says what must be seen, looks whether it is, and stops with one line where it is not. What was done
# and seen goes into a report that can be sent on: numbers of accounts and your address are not in it, nor any key.
#
# All that is made has the prefix in its name, or is removed by the name that AWS gave it. Nothing that was there
# before is touched: a name that is taken stops it at step 3.
set -euo pipefail

# shellcheck disable=SC2016  # backquotes are the report's
readonly USAGE='usage: deploy/rehearsal.sh [options], at the root of the repository

  --compute ec2|fargate   what nodes run on (default: ec2)
  --arch arm64|x86_64     of the nodes (default: arm64)
  --prefix NAME           of all names: 3 to 20 of a-z, 0-9 and -, first a letter (default: rehearsal-, and four
                          random letters)
  --from CIDR             who reaches the load balancer (default: the address that you have on the internet)
  --report FILE           (default: PREFIX.md)
  --keep                  leave everything there in the end, and say how to remove it
  --yes                   do not ask before it costs money, and before it deletes what it made
  --dry-run               only print the plan: nothing is called

It needs the AWS CLI, version 2, with credentials and AWS_REGION; roomcast and python3 of one environment
(deploy/README.md, step 2), curl, openssl, timeout; for fargate also docker with buildx. It takes two to three hours.'

# Seconds between two looks, and how long something may take. Whoever waits longer than that waits for nothing.
readonly POLL_S=5
readonly BUILD_S=1800
readonly COMMAND_S=300
readonly FLEET_S=1800
readonly ROLL_S=7200
readonly RESTORE_S=7200
readonly NODES=2
# That there must be room for beside them, while some are replaced.
readonly SPARE_NODES=2
# While nodes are replaced one by one, at most one request in so many may fail.
readonly REQUESTS_A_FAILURE=50
readonly OUTPUT_LINES=20

COMPUTE=ec2 ARCH=arm64 PREFIX='' FROM='' REPORT='' KEEP='' YES='' DRY=''
while (($#)); do
  case $1 in
    --compute | --arch | --prefix | --from | --report)
      [[ $# -ge 2 ]] || { echo "rehearsal: $1 needs a value" >&2; exit 2; }
      case $1 in
        --compute) COMPUTE=$2 ;; --arch) ARCH=$2 ;; --prefix) PREFIX=$2 ;; --from) FROM=$2 ;; --report) REPORT=$2 ;;
      esac
      shift 2
      ;;
    --keep) KEEP=yes; shift ;;
    --yes) YES=yes; shift ;;
    --dry-run) DRY=yes; shift ;;
    -h | --help) printf '%s\n' "$USAGE"; exit 0 ;;
    *) echo "rehearsal: unknown option $1 (--help)" >&2; exit 2 ;;
  esac
done
[[ $COMPUTE == ec2 || $COMPUTE == fargate ]] || { echo 'rehearsal: --compute is ec2 or fargate' >&2; exit 2; }
[[ $ARCH == arm64 || $ARCH == x86_64 ]] || { echo 'rehearsal: --arch is arm64 or x86_64' >&2; exit 2; }
PREFIX=${PREFIX:-rehearsal-$(printf '%04x' $((RANDOM % 65536)) | tr 0-9 g-p)}
[[ $PREFIX =~ ^[a-z][a-z0-9-]{2,19}$ ]] || { echo 'rehearsal: --prefix is 3 to 20 of a-z, 0-9 and -' >&2; exit 2; }
REPORT=${REPORT:-$PREFIX.md}
[[ $REPORT == /* ]] || REPORT=$PWD/$REPORT
# What it takes out of the environment, it sets itself.
unset "${!ROOMCAST_@}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what is said, and what is kept of it

WORK='' ACCOUNT='' ADDRESS='' STEP=0 TITLE='' BEGAN=0
# "kind name": what is removed first stands last. From before it is made, for half of it may be when that fails.
MADE=()
# The stack that is being deployed.
STACK=''

masked() { # also an account that is not known yet
  sed -E -e "s/${ACCOUNT:-no account yet}/ACCOUNT/g" -e 's/(^|[^0-9a-f])[0-9]{12}([^0-9a-f]|$)/\1ACCOUNT\2/g' \
    -e "s#${ADDRESS:-no address yet}#YOUR_ADDRESS#g"
}

note() {
  printf '%s\n' "$*"
  [[ -n $DRY ]] || printf '%s\n' "$*" | masked >>"$REPORT"
}

step() { # title, what must be seen
  STEP=$((STEP + 1)) TITLE=$1 BEGAN=$SECONDS
  note ''
  note "## $STEP. $1"
  note ''
  note "Must be seen: $2"
  note ''
}

seen() {
  [[ -n $DRY ]] || note "    seen: $*"
}

ok() {
  [[ -n $DRY ]] || { note ''; note "**ok**, $((SECONDS - BEGAN)) s"; }
}

fail() { # in one line
  note ''
  note "**FAILED** in step $STEP, $TITLE: $*"
  if [[ -n $STACK ]]; then
    note ''
    note "What CloudFormation says of $STACK, the newest first:"
    note ''
    told "$(aws cloudformation describe-stack-events --stack-name "$STACK" --output text --max-items "$OUTPUT_LINES" \
      --query "StackEvents[?contains(ResourceStatus, 'FAILED')].[LogicalResourceId, ResourceStatusReason]" 2>&1)"
  fi
  leftovers
  printf 'rehearsal: step %s, %s: %s\nrehearsal: the report is %s\n' "$STEP" "$TITLE" "$*" "$REPORT" >&2
  exit 1
}

finish() {
  [[ -z $WORK ]] || rm -rf "$WORK"
}
trap finish EXIT
trap 'fail "interrupted"' INT TERM

# ---- commands

shown() { # a command as it can be typed
  printf '%s' "$1"
  local word
  for word in "${@:2}"; do
    if [[ $word =~ ^[A-Za-z0-9@%+=:,./_\<\>-]+$ ]]; then printf ' %s' "$word"; else printf " '%s'" "${word//\'/\'\\\'\'}"; fi
  done
}

listed() { # all that the last command said
  [[ -n $DRY ]] || printf '%s\n' "$OUTPUT" | while IFS= read -r line; do note "    | $line"; done
}

told() { # what a command that failed said last
  printf '%s\n' "$1" | tail -n "$OUTPUT_LINES" | while IFS= read -r line; do note "    | $line"; done
}

OUTPUT=''
run() { # a command that must succeed; OUTPUT is what it printed
  note "    \$ $(shown "$@")"
  OUTPUT=''
  [[ -z $DRY ]] || return 0
  local status=0
  OUTPUT=$("$@" 2>"$WORK/stderr" </dev/null) || status=$?
  if ((status)); then
    told "$OUTPUT$(cat "$WORK/stderr")"
    fail "$(shown "${@:1:3}") … ended with $status"
  fi
}

ask() { # the name of a variable, and the command that prints what it is to have
  local name=$1
  run "${@:2}"
  [[ -z $DRY ]] || OUTPUT="<$name>"
  [[ -n $OUTPUT && $OUTPUT != None ]] || fail "$(shown "${@:2:3}") … printed nothing"
  printf -v "$name" '%s' "$OUTPUT"
}

member() { # a variable, and the names that lead to its value in OUTPUT, which is JSON
  local value=''
  [[ -n $DRY ]] || value=$(python3 -c 'import functools, json, sys
print(functools.reduce(lambda part, name: part[name], sys.argv[1:], json.load(sys.stdin)))' "${@:2}" <<<"$OUTPUT") ||
    fail "there is no ${*:2} in: $OUTPUT"
  [[ -z $DRY ]] || value="<$1>"
  printf -v "$1" '%s' "$value"
}

until_seen() { # seconds, what, a command that succeeds when it is so
  local tries=$(($1 / POLL_S)) what=$2
  shift 2
  note "    until $what"
  [[ -z $DRY ]] || return 0
  while ! "$@"; do
    ((tries-- > 0)) || fail "not seen in time: $what"
    probe
    sleep "$POLL_S"
  done
  seen "$what"
}

confirm() {
  [[ -z $DRY ]] || { note "(asks: $1)"; return 0; }
  [[ -z $YES ]] || return 0
  [[ -t 0 ]] || fail 'nobody to ask; --yes goes on without'
  local answer
  read -r -p "$1 [y/N] " answer
  [[ $answer == [yY]* ]]
}

# ---- what was made

made() { # kind, name
  MADE+=("$1 $2")
}

made_last() { # the same for what can be removed only after all others
  MADE=("$1 $2" ${MADE[@]+"${MADE[@]}"})
}

made_anew() { # what was there already, and now needs what was made after it
  local each others=()
  for each in "${MADE[@]}"; do [[ $each == "$1 $2" ]] || others+=("$each"); done
  MADE=("${others[@]}" "$1 $2")
}

about() { # kind, name: a command that fails when it is not there
  case $1 in
    stack) echo "aws cloudformation describe-stacks --stack-name $2" ;;
    table) echo "aws dynamodb describe-table --table-name $2" ;;
    bucket) echo "aws s3api head-bucket --bucket $2" ;;
    secret) echo "aws secretsmanager describe-secret --secret-id $2" ;;
    certificate) echo "aws acm describe-certificate --certificate-arn $2" ;;
    repository) echo "aws ecr describe-repositories --repository-names $2" ;;
  esac
}

removal() { # kind, name: commands, one a line
  case $1 in
    stack)
      echo "aws cloudformation delete-stack --stack-name $2"
      echo "aws cloudformation wait stack-delete-complete --stack-name $2"
      ;;
    table)
      echo "aws dynamodb delete-table --table-name $2"
      echo "aws dynamodb wait table-not-exists --table-name $2"
      ;;
    bucket) echo "aws s3 rb --force s3://$2" ;;
    secret) echo "aws secretsmanager delete-secret --force-delete-without-recovery --secret-id $2" ;;
    certificate) echo "aws acm delete-certificate --certificate-arn $2" ;;
    repository) echo "aws ecr delete-repository --force --repository-name $2" ;;
  esac
}

is_there() { # kind, name. Not to know is a failure.
  local command said
  read -ra command <<<"$(about "$1" "$2")"
  if said=$("${command[@]}" 2>&1); then return 0; fi
  [[ $said =~ does\ not\ exist|NotFound|Not\ Found|404 ]] || { told "$said"; fail "cannot tell whether there is a $1 $2"; }
  return 1
}

leftovers() { # how to remove what is there still
  if [[ -n $DRY || ${#MADE[@]} -eq 0 ]]; then return 0; fi
  note ''
  note 'Made, and perhaps there still. To remove it, the last first:'
  note ''
  note "    export AWS_REGION=$AWS_REGION"
  local index line
  for ((index = ${#MADE[@]} - 1; index >= 0; index--)); do
    while IFS= read -r line; do note "    $line"; done < <(removal "${MADE[index]%% *}" "${MADE[index]#* }")
  done
}

# ---- the deployment

DATA=$PREFIX-data TABLES=$PREFIX- BASE='' SOCKET=''

AS_NODE=()
as_node() { # sets how a command of roomcast sees what nodes see, with the rights of whoever runs this
  AS_NODE=(env ROOMCAST_AWS_REGION="$AWS_REGION" ROOMCAST_AWS_TOPIC_ARN="$TOPIC_ARN"
    ROOMCAST_AWS_TABLE_PREFIX="$TABLES" ROOMCAST_AWS_QUEUE_PREFIX="${PREFIX}_" timeout "$COMMAND_S" roomcast)
}

# Over the load balancer, as applications do. The keys are in files, not on command lines.
of_fleet() {
  if [[ -z $DRY ]]; then
    ROOMCAST_SECRET=$(<"$WORK/secret")
    export ROOMCAST_SECRET
  fi
  run env SSL_CERT_FILE="${WORK:-<work>}/cert.pem" timeout "$COMMAND_S" roomcast "$@"
  unset ROOMCAST_SECRET
}

output() { # variable, stack, output
  ask "$1" aws cloudformation describe-stacks --stack-name "$2" --output text \
    --query "Stacks[0].Outputs[?OutputKey=='$3'].OutputValue | [0]"
}

deployed() { # stack, template, further arguments
  STACK=$1
  run aws cloudformation deploy --no-fail-on-empty-changeset --stack-name "$1" --template-file "deploy/$2" "${@:3}"
  ask STANDING aws cloudformation describe-stacks --stack-name "$1" --query 'Stacks[0].StackStatus' --output text
  [[ -n $DRY || $STANDING == CREATE_COMPLETE || $STANDING == UPDATE_COMPLETE ]] || fail "stack $1 is $STANDING"
  STACK=''
  seen "stack $1 is $STANDING"
}

fleet_deployed() { # parameters
  deployed "$PREFIX" template.yaml --s3-bucket "$BUCKET" --s3-prefix templates --capabilities CAPABILITY_IAM \
    --parameter-overrides "$@"
}

# Ids of instances in service, or of tasks that run, one a line.
ids() {
  if [[ $COMPUTE == ec2 ]]; then
    aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$PREFIX-fleet" --output text \
      --query "AutoScalingGroups[0].Instances[?LifecycleState=='InService'].InstanceId"
  else
    aws ecs list-tasks --cluster "$PREFIX" --service-name "$PREFIX-nodes" --desired-status RUNNING --output text \
      --query 'taskArns'
  fi | tr '\t' '\n' | sed -e '/^None$/d' -e '/^$/d'
}

has_nodes() { # number
  [[ $(ids | wc -l) -eq $1 ]]
}

has_nodes_without() { # ids that must be gone
  local now
  now=$(ids)
  [[ $(wc -l <<<"$now") -eq $NODES ]] && ! grep -qFx "$1" <<<"$now"
}

is_ready() {
  [[ $(code) == 200 ]]
}

has_leases() { # of nodes that live
  local leases
  leases=$("${AS_NODE[@]}" nodes --json 2>/dev/null) || return 1
  [[ $(grep -c '"standing": *"live"' <<<"$leases") -ge $1 ]]
}

# The HTTP status of a publication, 000 without an answer.
code() {
  curl --silent --max-time 5 --cacert "$WORK/cert.pem" --output /dev/null --write-out '%{http_code}' \
    --header @"$WORK/header" --header 'Content-Type: application/json' \
    --data '{"channel": "rehearsal-watch", "data": {}}' "$BASE/api/publish" || true
}

# While something is waited for, whether it goes on answering.
PROBED='' ASKED=0 REFUSED=0
probe() {
  [[ -n $PROBED ]] || return 0
  ASKED=$((ASKED + 1))
  is_ready || REFUSED=$((REFUSED + 1))
}

scaled_to() { # number of nodes, whatever scaling would have
  if [[ $COMPUTE == ec2 ]]; then
    run aws autoscaling update-auto-scaling-group --auto-scaling-group-name "$PREFIX-fleet" --min-size "$1" \
      --desired-capacity "$1"
  else
    run aws ecs update-service --cluster "$PREFIX" --service "$PREFIX-nodes" --desired-count "$1" --query service.status
  fi
  until_seen "$FLEET_S" "$1 nodes in service" has_nodes "$1"
}

# ---- the steps

tools_and_account() {
  step 'Tools, account, region' 'every tool is there, and AWS says who you are'
  local tool
  local tools=(aws roomcast python3 curl openssl timeout)
  [[ $COMPUTE == ec2 ]] || tools+=(docker)
  for tool in "${tools[@]}"; do
    [[ -n $DRY ]] || command -v "$tool" >/dev/null || fail "$tool is not on the PATH"
  done
  seen "${tools[*]}"
  run aws --version
  seen "$OUTPUT"
  [[ -n $DRY || $OUTPUT == aws-cli/[2-9]* ]] || fail 'version 2 of the AWS CLI is needed'
  run roomcast --version
  seen "$OUTPUT, of commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  AWS_REGION=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
  [[ -z $DRY ]] || AWS_REGION=${AWS_REGION:-<AWS_REGION>}
  [[ -n $AWS_REGION ]] || fail 'AWS_REGION is not set'
  export AWS_REGION AWS_PAGER=''
  ask ACCOUNT aws sts get-caller-identity --query Account --output text
  ADDRESS=${FROM%/*}
  if [[ -z $FROM ]]; then
    ask ADDRESS curl --silent --fail --max-time 10 https://checkip.amazonaws.com
    FROM=$ADDRESS/32
  fi
  BUCKET=$PREFIX-$ACCOUNT
  seen "region $AWS_REGION, nodes on $COMPUTE, $ARCH"
  ok
}

account_has_room() {
  step 'Account' 'no check failed: quotas, zones, endpoints and keys are enough for a few nodes'
  local given=(--instances "$((NODES + SPARE_NODES))")
  [[ $COMPUTE == ec2 ]] || given+=(--fargate)
  [[ $COMPUTE == fargate || $ARCH == arm64 ]] || given+=(--instance-type c7i.large)
  run timeout "$COMMAND_S" roomcast doctor --account "${given[@]}"
  listed
  ok
}

names_are_free() {
  step 'Names' "nothing in the account is called $PREFIX yet"
  local each
  local names=("stack $PREFIX" "stack $DATA" "stack $DATA-2" "secret $PREFIX" "bucket $BUCKET")
  for each in channels idempotency nodes presence; do
    names+=("table $PREFIX-$each" "table $PREFIX-2-$each")
  done
  [[ $COMPUTE == ec2 ]] || names+=("repository $PREFIX")
  for each in "${names[@]}"; do
    note "    \$ $(about "${each%% *}" "${each#* }")"
    [[ -n $DRY ]] || ! is_there "${each%% *}" "${each#* }" || fail "there is a $each already: take another --prefix"
  done
  run aws sqs list-queues --queue-name-prefix "${PREFIX}_" --query QueueUrls --output text
  [[ -n $DRY || -z $OUTPUT || $OUTPUT == None ]] || fail "there are queues already: take another --prefix"
  seen "none of ${#names[@]} names is taken, and no queue begins with ${PREFIX}_"
  ok
  confirm 'From here on it costs money: less than half a dollar an hour, for two to three hours. Go on?' ||
    fail 'not wanted'
}

build_and_upload() {
  step 'Build' 'what was built is in a bucket of its own'
  made bucket "$BUCKET"
  run aws s3 mb "s3://$BUCKET"
  if [[ -z $DRY ]]; then
    options 100 >"$WORK/roomcast.toml"
  fi
  built
  ok
}

options() { # history_size
  printf '[channel.without_namespace]\nhistory_size = %s\nhistory_ttl = "24h"\nforce_recovery = true\n' "$1"
}

PARAMETERS=()
built() { # into PARAMETERS
  local arguments=(--arch "$ARCH" --config "${WORK:-<work>}/roomcast.toml" --out "${WORK:-<work>}/dist")
  [[ $COMPUTE == ec2 ]] || arguments+=(--lambdas-only)
  run timeout "$BUILD_S" python3 deploy/build.py "${arguments[@]}"
  run aws s3 cp --only-show-errors --recursive "${WORK:-<work>}/dist/s3" "s3://$BUCKET"
  PARAMETERS=()
  local line
  if [[ -n $DRY ]]; then
    PARAMETERS=('<parameters of the build>')
  else
    while IFS= read -r line; do PARAMETERS+=("$line"); done <"$WORK/dist/parameters"
  fi
  seen "${#PARAMETERS[@]} keys in the bucket"
}

secret_and_certificate() {
  step 'Secret and certificate' 'both have an ARN'
  made secret "$PREFIX"
  if [[ -z $DRY ]]; then
    local key
    key=$(openssl rand -hex 32)
    (
      umask 077
      printf '{"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY":"%s","ROOMCAST_HTTP_API_KEY":"%s"}' \
        "$(openssl rand -hex 32)" "$key" >"$WORK/secret"
      printf 'X-API-Key: %s\n' "$key" >"$WORK/header"
    )
  fi
  ask SECRET_ARN aws secretsmanager create-secret --name "$PREFIX" --secret-string "file://${WORK:-<work>}/secret" \
    --query ARN --output text
  # Signed by itself, for the names that load balancers get, so that clients can look at it as at any other.
  run openssl req -x509 -newkey rsa:2048 -nodes -days 3 -subj "/CN=$PREFIX.invalid" \
    -addext "subjectAltName=DNS:*.$AWS_REGION.elb.amazonaws.com,DNS:*.elb.$AWS_REGION.amazonaws.com.cn" \
    -addext keyUsage=critical,digitalSignature,keyCertSign \
    -keyout "${WORK:-<work>}/key.pem" -out "${WORK:-<work>}/cert.pem"
  ask CERTIFICATE_ARN aws acm import-certificate --certificate "fileb://${WORK:-<work>}/cert.pem" \
    --private-key "fileb://${WORK:-<work>}/key.pem" --query CertificateArn --output text
  made certificate "$CERTIFICATE_ARN"
  ok
}

container_image() {
  step 'Container image' 'an image with options in it is in a repository of its own, and has a digest'
  local platform=linux/arm64
  [[ $ARCH == arm64 ]] || platform=linux/amd64
  made repository "$PREFIX"
  ask REPOSITORY aws ecr create-repository --repository-name "$PREFIX" --image-tag-mutability IMMUTABLE \
    --query repository.repositoryUri --output text
  note "    \$ aws ecr get-login-password | docker login --username AWS --password-stdin ${REPOSITORY%%/*}"
  if [[ -z $DRY ]]; then
    aws ecr get-login-password 2>"$WORK/stderr" |
      docker login --username AWS --password-stdin "${REPOSITORY%%/*}" >>"$WORK/stderr" 2>&1 ||
      { told "$(cat "$WORK/stderr")"; fail 'docker could not log in'; }
    mkdir "$WORK/image"
    cp "$WORK/roomcast.toml" "$WORK/image/"
    printf 'FROM %s:node\nCOPY roomcast.toml /etc/roomcast.toml\nENV ROOMCAST_CONFIG=/etc/roomcast.toml\n' \
      "$REPOSITORY" >"$WORK/image/Dockerfile"
  fi
  run timeout "$BUILD_S" docker buildx build --platform "$platform" --file deploy/container/Dockerfile \
    --tag "$REPOSITORY:node" --push .
  run timeout "$BUILD_S" docker buildx build --platform "$platform" --tag "$REPOSITORY:rehearsal" --push \
    "${WORK:-<work>}/image"
  ask DIGEST aws ecr describe-images --repository-name "$PREFIX" --image-ids imageTag=rehearsal \
    --query 'imageDetails[0].imageDigest' --output text
  seen "$DIGEST"
  # The account's, and not removed again: any other service of ECS uses it as well. It fails where it is there already.
  note "    \$ aws iam create-service-linked-role --aws-service-name ecs.amazonaws.com"
  [[ -n $DRY ]] || aws iam create-service-linked-role --aws-service-name ecs.amazonaws.com >/dev/null 2>&1 || true
  ok
}

data_stack() {
  step 'Data' "the stack $DATA is complete, and has a topic"
  made table "$PREFIX-channels"
  made table "$PREFIX-idempotency"
  made stack "$DATA"
  deployed "$DATA" data.yaml --parameter-overrides "TablePrefix=$PREFIX-" DeletionProtection=false
  output TOPIC_ARN "$DATA" TopicArn
  as_node
  ok
}

fleet_stack() {
  step 'Fleet' "the stack $PREFIX is complete, $NODES nodes are in service, and the load balancer answers"
  local given=("${PARAMETERS[@]}" "Compute=$COMPUTE" "DataStack=$DATA" "ArtifactBucket=$BUCKET" "SecretArn=$SECRET_ARN"
    "CertificateArn=$CERTIFICATE_ARN" AlarmTopicArn=nobody DeletionProtection=false AccessLogs=false Scheme=internet-facing
    "ClientCidr=$FROM" "ApiCidr=$FROM")
  local service
  for service in S3:s3 DynamoDb:dynamodb; do
    ask LIST aws ec2 describe-managed-prefix-lists --query 'PrefixLists[0].PrefixListId' --output text \
      --filters "Name=prefix-list-name,Values=com.amazonaws.$AWS_REGION.${service#*:}"
    given+=("${service%:*}PrefixListId=$LIST")
  done
  ask CONCURRENCY aws lambda get-account-settings --query AccountLimit.ConcurrentExecutions --output text
  # AWS leaves a hundred to the functions that have reserved none.
  if [[ -z $DRY ]] && ((CONCURRENCY <= 100)); then
    given+=(ReserveReaper=false)
    seen "$CONCURRENCY Lambdas at once: a small account, so none is reserved for the reaper"
  fi
  if [[ $COMPUTE == ec2 ]]; then
    ask IMAGE aws ssm get-parameter --query Parameter.Value --output text \
      --name "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-$ARCH"
    given+=("ImageId=$IMAGE")
    [[ $ARCH == arm64 ]] || given+=(InstanceType=c7i.large Processes=0)
  else
    given+=("ImageRepository=$PREFIX" "ImageDigest=$DIGEST")
    [[ $ARCH == arm64 ]] || given+=(TaskArchitecture=X86_64)
  fi
  made stack "$PREFIX"
  fleet_deployed "${given[@]}"
  output FAILURES "$PREFIX" FailureBucketName
  made_last bucket "$FAILURES"
  output BASE "$PREFIX" ApiUrl
  BASE=${BASE%/api}
  output SOCKET "$PREFIX" WebSocketUrl
  until_seen "$FLEET_S" "$NODES nodes in service" has_nodes "$NODES"
  until_seen "$FLEET_S" 'a publication over the load balancer is answered' is_ready
  until_seen "$COMMAND_S" "$NODES live leases (roomcast nodes)" has_leases "$NODES"
  ok
}

doctor() {
  step 'Doctor' 'every check is ok, from the tables to a message that came round'
  run "${AS_NODE[@]}" doctor
  listed
  ok
}

publication() {
  step 'A publication' 'it has an offset, and stands in the history'
  of_fleet publish rehearsal '{"text": "first"}' --idempotency-key first --url "${BASE:-<BASE>}" --json
  seen "$OUTPUT"
  member OFFSET offset
  member EPOCH epoch
  of_fleet history rehearsal --url "${BASE:-<BASE>}"
  [[ -n $DRY || $OUTPUT == *first* ]] || fail 'it is not in the history'
  ok
}

load() {
  step 'Load' 'nothing lost, repeated or out of order'
  of_fleet bench "${SOCKET:-<SOCKET>}" --grant --clients 50 --channels 10 --rate 20 --duration 30
  [[ -n $DRY ]] || printf '%s\n' "$OUTPUT" | while IFS= read -r line; do note "    | $line"; done
  ok
}

kill_a_node() {
  step 'Kill a node' "another takes its place: $NODES in service without it, and the load balancer answers"
  if [[ $COMPUTE == ec2 ]]; then
    ask VICTIM aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$PREFIX-fleet" --output text \
      --query "AutoScalingGroups[0].Instances[?LifecycleState=='InService'] | [0].InstanceId"
    run aws ec2 terminate-instances --instance-ids "$VICTIM" --query 'TerminatingInstances[0].CurrentState.Name'
  else
    ask VICTIM aws ecs list-tasks --cluster "$PREFIX" --service-name "$PREFIX-nodes" --query 'taskArns[0]' --output text
    run aws ecs stop-task --cluster "$PREFIX" --task "$VICTIM" --reason rehearsal --query task.lastStatus
  fi
  PROBED=yes ASKED=0 REFUSED=0
  until_seen "$FLEET_S" "$NODES nodes in service, not that one" has_nodes_without "$VICTIM"
  until_seen "$COMMAND_S" 'a publication is answered' is_ready
  PROBED=''
  seen "$REFUSED of $ASKED publications meanwhile failed"
  ok
}

roll() {
  step 'Roll' "all nodes are others, and not one request in $REQUESTS_A_FAILURE failed meanwhile"
  local before='' deploying
  if [[ -z $DRY ]]; then
    before=$(ids)
    [[ -n $before ]] || fail 'no node is in service'
  fi
  PROBED=yes ASKED=0 REFUSED=0
  if [[ $COMPUTE == ec2 ]]; then
    # Other options are another launch template. CloudFormation replaces the instances, and looks at the alarms.
    [[ -n $DRY ]] || options 101 >"$WORK/roomcast.toml"
    built
    local deploy=(aws cloudformation deploy --stack-name "$PREFIX" --template-file deploy/template.yaml
      --s3-bucket "$BUCKET" --s3-prefix templates --capabilities CAPABILITY_IAM
      --parameter-overrides "${PARAMETERS[@]}")
    note "    \$ $(shown "${deploy[@]}") &"
    if [[ -z $DRY ]]; then
      "${deploy[@]}" >"$WORK/rolled" 2>&1 &
      deploying=$!
      until_seen "$ROLL_S" 'the update is over' has_ended "$deploying"
      if ! wait "$deploying"; then
        # The CLI looks for an hour, and CloudFormation goes on.
        [[ $(standing) == UPDATE_*IN_PROGRESS ]] ||
          { told "$(cat "$WORK/rolled")"; fail 'the update did not succeed'; }
        until_seen "$ROLL_S" 'CloudFormation has ended the update' has_settled
        [[ $(standing) == UPDATE_COMPLETE ]] || fail "the update ended as $(standing)"
      fi
    else
      until_seen "$ROLL_S" 'the update is over' false
    fi
  else
    run aws ecs update-service --cluster "$PREFIX" --service "$PREFIX-nodes" --force-new-deployment --query service.status
    until_seen "$ROLL_S" 'the deployment is complete' rolled_out
  fi
  until_seen "$FLEET_S" "$NODES nodes in service, all others" has_nodes_without "$before"
  [[ -n $DRY ]] || probe
  PROBED=''
  seen "$REFUSED of $ASKED publications meanwhile failed"
  ((REFUSED * REQUESTS_A_FAILURE <= ASKED)) || fail "$REFUSED of $ASKED publications failed"
  ok
}

standing() { # of the fleet's stack
  aws cloudformation describe-stacks --stack-name "$PREFIX" --query 'Stacks[0].StackStatus' --output text
}

has_settled() {
  [[ $(standing) != *IN_PROGRESS ]]
}

has_ended() {
  ! kill -0 "$1" 2>/dev/null
}

rolled_out() {
  [[ $(aws ecs describe-services --cluster "$PREFIX" --services "$PREFIX-nodes" --output text \
    --query "services[0].deployments[?rolloutState!='COMPLETED'] | length(@)") == 0 ]]
}

restore() {
  step 'Restore' 'on restored tables, the first publication counts as published, and channels begin a new epoch'
  local when
  when=${DRY:+<when the load had ended>}
  when=${when:-$RESTORE_TIME}
  until_seen "$FLEET_S" "DynamoDB can go back to $when" restorable "$when"
  made table "$PREFIX-2-channels"
  made table "$PREFIX-2-idempotency"
  run env ROOMCAST_AWS_REGION="$AWS_REGION" timeout "$RESTORE_S" roomcast restore --from-prefix "$PREFIX-" \
    --to-prefix "$PREFIX-2-" --to-time "$when" --no-deletion-protection --json
  member STREAM parameters data ChannelsStreamArn
  member GENERATION parameters fleet LogGeneration
  DATA=$DATA-2 TABLES=$PREFIX-2-
  made stack "$DATA"
  deployed "$DATA" data.yaml \
    --parameter-overrides "TablePrefix=$TABLES" "ChannelsStreamArn=$STREAM" DeletionProtection=false
  made_anew stack "$PREFIX"
  # Nobody publishes into the old tables any more.
  scaled_to 0
  fleet_deployed "DataStack=$DATA" "LogGeneration=$GENERATION" RolloutBrake=false
  scaled_to "$NODES"
  until_seen "$FLEET_S" 'a publication over the load balancer is answered' is_ready
  of_fleet publish rehearsal '{"text": "first"}' --idempotency-key first --url "${BASE:-<BASE>}" --json
  seen "$OUTPUT"
  member AGAIN offset
  [[ -n $DRY || $AGAIN == "$OFFSET" ]] || fail 'the first was published again'
  of_fleet publish rehearsal '{"text": "second"}' --url "${BASE:-<BASE>}" --json
  seen "$OUTPUT"
  member AGAIN epoch
  [[ -n $DRY || $AGAIN != "$EPOCH" ]] || fail 'the epoch is the old one'
  ok
}

restorable() {
  local table latest
  for table in channels idempotency; do
    latest=$(aws dynamodb describe-continuous-backups --table-name "$PREFIX-$table" --output text --query \
      ContinuousBackupsDescription.PointInTimeRecoveryDescription.LatestRestorableDateTime) || return 1
    python3 -c 'import sys
from datetime import datetime
latest, wanted = (datetime.fromisoformat(each.replace("Z", "+00:00")) for each in sys.argv[1:])
sys.exit(latest < wanted)' "$latest" "$1" 2>/dev/null || return 1
  done
}

remove() {
  step 'Remove' "nothing is called $PREFIX any more"
  if [[ -n $KEEP ]]; then
    note 'Kept (--keep).'
    leftovers
    return 0
  fi
  if ! confirm "Delete what was made, ${#MADE[@]} things, with all that was published?"; then
    leftovers
    return 0
  fi
  local each line command
  while ((${#MADE[@]})); do
    each=${MADE[${#MADE[@]} - 1]}
    if [[ -n $DRY ]] || is_there "${each%% *}" "${each#* }"; then
      while IFS= read -r line; do
        read -ra command <<<"$line"
        run "${command[@]}"
      done < <(removal "${each%% *}" "${each#* }")
    fi
    MADE=(${MADE[@]+"${MADE[@]:0:${#MADE[@]}-1}"})
  done
  # Nodes delete theirs when they end. One that was killed could not, and the reaper went with the stack.
  run aws sqs list-queues --queue-name-prefix "${PREFIX}_" --query QueueUrls --output text
  for each in $OUTPUT; do
    [[ $each == None ]] || run aws sqs delete-queue --queue-url "$each"
  done
  seen 'everything that was made is gone'
  ok
}

if [[ -n $DRY ]]; then
  echo "The plan, with nodes on $COMPUTE. Nothing is called."
else
  [[ ! -e $REPORT ]] || { echo "rehearsal: $REPORT is there already: take another --report" >&2; exit 2; }
  WORK=$(mktemp -d)
  : >"$REPORT"
  note "# Rehearsal $PREFIX"
  note ''
  note "$(date -u +%Y-%m-%dT%H:%M:%SZ), nodes on $COMPUTE"
fi
tools_and_account
account_has_room
names_are_free
build_and_upload
secret_and_certificate
[[ $COMPUTE == ec2 ]] || container_image
data_stack
fleet_stack
doctor
publication
load
RESTORE_TIME=$(date -u +%Y-%m-%dT%H:%M:%SZ)
kill_a_node
roll
restore
remove
if [[ -z $DRY ]]; then
  note ''
  note "## All is well, after $((SECONDS / 60)) minutes"
  echo "The report is $REPORT."
fi
