#!/usr/bin/env bash
# Every tool that deploy/rehearsal.sh calls, by the name that it is called by. $STUB/calls has the calls; a file in
# $STUB/things is what is there in the account; a call with $STUB_FAILS in it fails.
set -euo pipefail
name=${0##*/}
line="$name $*"
cd "$STUB/things"
printf '%s\n' "$line" >>"$STUB/calls"

refuse() { echo "$*" >&2; exit 254; }
there() { [[ -e $1 ]] || refuse "$2"; }
after() { # an option: what follows it
  local want=$1 previous=''
  shift
  for each in "$@"; do
    [[ $previous != "$want" ]] || { printf '%s' "$each"; return; }
    previous=$each
  done
}
given() { # a parameter of `aws cloudformation deploy`
  local each
  for each in "${@:2}"; do [[ $each != "$1="* ]] || { printf '%s' "${each#*=}"; return; }; done
}
nodes() { # other ones, so many
  local number
  : >"$STUB/nodes"
  for ((number = 0; number < $1; number++)); do echo "node-$SRANDOM" >>"$STUB/nodes"; done
}

if [[ -n ${STUB_FAILS:-} && $line == *"$STUB_FAILS"* ]]; then refuse 'refused: 123456789012 may not'; fi

case $line in
  'aws --version') echo 'aws-cli/2.99.0 Python/3.13' ;;
  'aws sts get-caller-identity'*) echo 123456789012 ;;
  'aws lambda get-account-settings'*) echo 10 ;;
  'aws ssm get-parameter'*) echo ami-0123456789abcdef0 ;;
  'aws ec2 describe-managed-prefix-lists'*) echo pl-12345678 ;;
  'aws sqs list-queues'*) echo None ;;
  'aws iam create-service-linked-role'*) refuse 'it is there already' ;;

  'aws cloudformation describe-stack-events'*) printf 'StreamLambda\tno rights\n' ;;
  'aws cloudformation describe-stacks'*)
    there "stack $(after --stack-name "$@")" "Stack $(after --stack-name "$@") does not exist"
    case $line in
      *StackStatus*) echo UPDATE_COMPLETE ;;
      *TopicArn*) echo arn:aws:sns:eu-central-1:123456789012:topic ;;
      *ApiUrl*) echo https://lb.example/api ;;
      *WebSocketUrl*) echo wss://lb.example/connection/websocket ;;
      *FailureBucketName*) echo failures-of-the-stack ;;
    esac
    ;;
  'aws cloudformation deploy'*)
    stack=$(after --stack-name "$@")
    touch "stack $stack"
    if [[ $line == *data.yaml* ]]; then
      # Those that it is given it does not make.
      [[ $line == *ChannelsStreamArn=* ]] ||
        for table in channels idempotency; do touch "table $(given TablePrefix "$@")$table"; done
    else
      touch 'bucket failures-of-the-stack'
      data=$(given DataStack "$@")
      [[ -z $data ]] || printf '%s' "$data" >"$STUB/imports"
      [[ $line != *Key=* ]] || nodes 2
    fi
    ;;
  'aws cloudformation delete-stack'*)
    stack=$(after --stack-name "$@")
    for each in stack\ *; do
      # No other one is called as its data are, but for what follows.
      [[ $stack != "$(cat "$STUB/imports" 2>/dev/null)" || $each != "stack ${stack%%-data*}" ]] ||
        refuse "Export of $stack is in use by $each"
    done
    rm "stack $stack"
    ;;
  'aws cloudformation wait'* | 'aws dynamodb wait'*) ;;

  'aws dynamodb describe-table'*) there "table $(after --table-name "$@")" ResourceNotFoundException ;;
  'aws dynamodb delete-table'*) rm "table $(after --table-name "$@")" ;;
  'aws dynamodb describe-continuous-backups'*) echo 2999-01-01T00:00:00.123000+01:00 ;;
  'aws s3 mb'*) touch "bucket ${3#s3://}" ;;
  'aws s3 cp'*) there "bucket ${6#s3://}" 'no bucket' ;;
  'aws s3 rb'*) rm "bucket ${4#s3://}" ;;
  'aws s3api head-bucket'*) there "bucket $(after --bucket "$@")" 'Not Found (404)' ;;
  'aws secretsmanager create-secret'*)
    touch "secret $(after --name "$@")"
    echo arn:aws:secretsmanager:eu-central-1:123456789012:secret:stub
    cat "$(after --secret-string "$@" | sed s#file://##)" >"$STUB/secret"
    ;;
  'aws secretsmanager describe-secret'*) there "secret $(after --secret-id "$@")" ResourceNotFoundException ;;
  'aws secretsmanager delete-secret'*) rm "secret $(after --secret-id "$@")" ;;
  'aws acm import-certificate'*)
    touch "$STUB/certificate"
    echo arn:aws:acm:eu-central-1:123456789012:certificate/1
    ;;
  'aws acm describe-certificate'*) there "$STUB/certificate" ResourceNotFoundException ;;
  'aws acm delete-certificate'*) rm "$STUB/certificate" ;;
  'aws ecr create-repository'*)
    touch "repository $(after --repository-name "$@")"
    echo 123456789012.dkr.ecr.eu-central-1.amazonaws.com/stub
    ;;
  'aws ecr describe-repositories'*) there "repository $(after --repository-names "$@")" RepositoryNotFoundException ;;
  'aws ecr delete-repository'*) rm "repository $(after --repository-name "$@")" ;;
  'aws ecr get-login-password'*) echo password ;;
  'aws ecr describe-images'*) printf 'sha256:%064d\n' 0 ;;

  'aws autoscaling describe-auto-scaling-groups'*'| [0]'* | 'aws ecs list-tasks'*'[0]'*) head -n 1 "$STUB/nodes" ;;
  'aws autoscaling describe-auto-scaling-groups'* | 'aws ecs list-tasks'*) paste -s -d '\t' "$STUB/nodes" ;;
  'aws ec2 terminate-instances'* | 'aws ecs stop-task'* | *--force-new-deployment*) nodes 2 ;;
  'aws autoscaling update-auto-scaling-group'*) nodes "$(after --desired-capacity "$@")" ;;
  'aws ecs update-service'*) nodes "$(after --desired-count "$@")" ;;
  'aws ecs describe-services'*) echo 0 ;;

  'roomcast --version') echo 'roomcast 9.9' ;;
  'roomcast nodes'*) printf '[\n {"standing": "live"},\n {"standing": "live"}\n]\n' ;;
  'roomcast doctor --account'*) echo 'ok       endpoints' ;;
  'roomcast doctor'*) echo 'ok       tables' ;;
  'roomcast history'*) echo '1  {"text": "first"}' ;;
  'roomcast bench'*) echo '0 lost, 0 repeated, 0 out of order' ;;
  'roomcast publish'*)
    [[ -n ${ROOMCAST_SECRET:-} ]] || refuse 'no key'
    # A key counts for ever; an epoch as long as the data.
    if [[ $line == *--idempotency-key* ]]; then echo '{"offset": 7, "epoch": "a"}'; else echo "{\"offset\": 1, \"epoch\": \"$(<"$STUB/imports")\"}"; fi
    ;;
  'roomcast restore'*)
    for table in channels idempotency; do touch "table $(after --to-prefix "$@")$table"; done
    echo '{"parameters": {"data": {"ChannelsStreamArn": "arn:stream"}, "fleet": {"LogGeneration": "abc"}}}'
    ;;

  'curl '*checkip*) echo 203.0.113.7 ;;
  'curl '*) printf 200 ;;
  'docker login'*) [[ $(cat) == password ]] ;;
  'docker '*) ;;
  'sleep '*) ;;
  'timeout '*) shift; exec "$@" ;;
  'openssl rand'*) printf '%064d\n' "$SRANDOM" ;;
  'openssl req'*) touch "$(after -out "$@")" "$(after -keyout "$@")" ;;
  'python3 deploy/build.py'*)
    out=$(after --out "$@")
    mkdir -p "$out/s3"
    printf 'StreamLambdaKey=stub\nReaperLambdaKey=stub\n%s' "${STUB_BUILT:-}" >"$out/parameters"
    ;;
  'python3 '*) exec "$STUB_PYTHON" "$@" ;;
  *) refuse "nobody expects: $line" ;;
esac
