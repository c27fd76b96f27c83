#!/usr/bin/env bash
# An MLflow server on PostgreSQL, with passwords, in the foreground: deploy/tracking/start.sh
# The first start makes the database and the password of the user `admin`. SIGTERM and Ctrl-C end both.
#
#   TRACKING_HOST   127.0.0.1 by default: put a proxy with TLS before it, or name an address of this host
#   TRACKING_PORT   5000 by default
#   TRACKING_NAMES  the names that clients call this host by, with commas, where TRACKING_HOST is not loopback
#
# and those of common.sh.
. "$(dirname "$(readlink -f "$0")")/common.sh"

host=${TRACKING_HOST:-127.0.0.1}
port=${TRACKING_PORT:-5000}

"$python" -c 'import mlflow.version, flask_wtf, psycopg' 2> /dev/null ||
    fail "$python lacks MLflow, Flask-WTF or psycopg: make setup, or pip install 'shoal[tracking]'"
make_secret "$home/admin-password"
make_secret "$home/secret-key"
# A password that is made here is kept by the database; later changes of the file change nothing.
cat > "$home/basic_auth.ini" << END
[mlflow]
default_permission = READ
database_uri = postgresql://shoal@/mlflow_auth?host=$run
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
END

[ -d "$data" ] || make_database
start_postgres
server=
end() {
    trap - EXIT TERM INT
    [ -z "$server" ] || { kill "$server" 2> /dev/null && wait "$server"; } || true
    postgres stop
}
trap end EXIT
trap 'exit 0' TERM INT

export MLFLOW_AUTH_CONFIG_PATH=$home/basic_auth.ini
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$home/admin-password")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$home/secret-key")
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
names=()
[ -z "${TRACKING_NAMES:-}" ] || names=(--allowed-hosts "$TRACKING_NAMES")

echo "MLflow at http://$host:$port, user admin, password in $home/admin-password"
"$python" -m mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "${TRACKING_WORKERS:-2}" \
    --backend-store-uri "postgresql://shoal@/mlflow?host=$run" \
    --serve-artifacts --artifacts-destination "$artifacts" "${names[@]}" &
server=$!
wait "$server"
