# Sourced by start.sh, backup.sh and restore.sh: where a tracking server is, and its PostgreSQL.
#
#   TRACKING_HOME       all that the server keeps; default: ~/shoal-tracking
#   TRACKING_ARTIFACTS  where files of runs go: a folder, or s3://bucket/prefix; default: $TRACKING_HOME/artifacts
#
# PostgreSQL listens at a socket in a folder that this user alone may enter, and at no port.
set -euo pipefail

home=${TRACKING_HOME:-$HOME/shoal-tracking}
artifacts=${TRACKING_ARTIFACTS:-$home/artifacts}
data=$home/postgres
sockets=$home/sockets
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}

fail() {
    echo "error: $*" >&2
    exit 2
}

[ "$(id -u)" != 0 ] || fail "PostgreSQL does not run as root: call this as another user, e.g. runuser -u USER -- $0"
bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[ -x "$bin/initdb" ] || bin=$(dirname "$(command -v initdb || echo /none/initdb)")
[ -x "$bin/initdb" ] || fail "PostgreSQL is not installed: apt-get install postgresql"
[ ${#sockets} -lt 90 ] || fail "TRACKING_HOME=$home is too long for a socket: choose a shorter path"

umask 077
mkdir -p "$home" "$sockets"

make_database() {
    local made=$data.part
    rm -rf "$made"
    "$bin/initdb" --pgdata="$made" --encoding=UTF8 --auth-local=peer --auth-host=reject > "$home/initdb.log" ||
        fail "initdb failed, see $home/initdb.log"
    mv "$made" "$data"
}

start_postgres() {
    "$bin/pg_ctl" start --wait --silent --pgdata="$data" --log="$home/postgres.log" \
        --options="-c listen_addresses='' -c unix_socket_directories='$sockets'" > /dev/null ||
        fail "PostgreSQL does not start, see $home/postgres.log"
    for name in mlflow mlflow_auth; do
        "$bin/psql" -qAt -h "$sockets" -d postgres -c "select 1 from pg_database where datname = '$name'" | grep -q 1 ||
            "$bin/createdb" -h "$sockets" "$name"
    done
}

stop_postgres() {
    "$bin/pg_ctl" stop --wait --silent --mode=fast --pgdata="$data" > /dev/null
}
