#!/bin/bash
# Turns a fresh instance of Amazon Linux 2023 into one that runs roomcast. User data (deploy/template.yaml) runs it
# once, as root, in the directory where it has unpacked the release; settings.env and perhaps roomcast.toml are there too.
#
#   install.sh REGION SECRET_ARN LOG_GROUP
#
# Everything comes through the endpoints of the VPC: packages from Amazon Linux's repositories in S3, Python packages from
# the release. If a step fails, the instance never becomes ready, and Auto Scaling replaces it; what was printed is in the
# log group (stream INSTANCE/start) and in the instance's console output.
set -euo pipefail
umask 022

region=$1
secret=$2
log_group=$3
# Tests set it; on an instance it is empty.
root=${ROOMCAST_INSTALL_ROOT:-}

step() { echo "roomcast install: $*"; }

step packages
dnf --assumeyes --quiet install python3.12 python3.12-pip amazon-cloudwatch-agent logrotate

# First of all the logs: what goes wrong afterwards can be read when the instance is gone.
step logs
install -d -m 0755 "$root/var/log/roomcast"
install -D -m 0644 logrotate.conf "$root/etc/logrotate.d/roomcast"
agent="$root/opt/aws/amazon-cloudwatch-agent"
install -d -m 0755 "$agent/etc"
sed "s|LOG_GROUP|$log_group|" cloudwatch-agent.json > "$agent/etc/roomcast.json"
systemctl enable --now logrotate.timer
"$agent/bin/amazon-cloudwatch-agent-ctl" -a fetch-config -m ec2 -s -c "file:$agent/etc/roomcast.json"

step user
id --user roomcast > /dev/null 2>&1 || useradd --system --no-create-home --shell /sbin/nologin roomcast

step program
python3.12 -m venv "$root/opt/roomcast"
"$root/opt/roomcast/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-index --find-links wheels roomcast

step configuration
install -d -m 0755 "$root/etc/roomcast"
install -m 0644 settings.env "$root/etc/roomcast/settings.env"
if [ -e roomcast.toml ]; then
    install -m 0640 -g roomcast roomcast.toml "$root/etc/roomcast/roomcast.toml"
    echo "ROOMCAST_CONFIG=$root/etc/roomcast/roomcast.toml" >> "$root/etc/roomcast/settings.env"
fi
# From the one process into the other: the secret is in no argument, no log, and no file but this one.
(
    umask 077
    aws secretsmanager get-secret-value --region "$region" --secret-id "$secret" \
        --query SecretString --output text \
        | python3.12 secret_env.py > "$root/etc/roomcast/secret.env"
)

step nodes
install -D -m 0644 roomcast.service "$root/etc/systemd/system/roomcast.service"
systemctl daemon-reload
# The nodes complete the launch hook themselves, once they serve.
systemctl enable --now roomcast.service
step done
