# Sourced by start.sh, backup.sh and restore.sh: where a tracking server is, and its PostgreSQL.
#
#   TRACKING_HOME       all that the server keeps; default: ~/shoal-tracking
#   TRACKING_ARTIFACTS  where files of runs go: a folder, or s3://bucket/prefix; default: $TRACKING_HOME/artifacts
#   TRACKING_USER       who PostgreSQL runs as where root calls the scripts: it refuses root; default: postgres
#
# PostgreSQL listens at a socket in a folder that its user alone may enter, at no port, and demands a password.
set -euo pipefail

home=${TRACKING_HOME:-$HOME/shoal-tracking}
artifacts=${TRACKING_ARTIFACTS:-$home/artifacts}
data=$home/postgres
run=$home/run
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}

fail() {
    echo "error: $*" >&2
    exit 2
}

bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[ -x "$bin/initdb" ] || bin=$(dirname "$(command -v initdb || echo /none/initdb)")
[ -x "$bin/initdb" ] || fail "PostgreSQL is not installed: apt-get install postgresql"
[ ${#run} -lt 90 ] || fail "TRACKING_HOME=$home is too long for a socket: choose a shorter path"

umask 077
mkdir -p "$home" "$run"
as=()
if [ "$(id -u)" = 0 ]; then
    user=${TRACKING_USER:-postgres}
    id -u "$user" > /dev/null 2>&1 || fail "there is no user '$user' to run PostgreSQL: set TRACKING_USER"
    as=(runuser -u "$user" --)
    chmod 711 "$home"
    chown "$user" "$run"
fi
export PGPASSFILE=$home/pgpass PGUSER=shoal PGHOST=$run

make_secret() { # FILE
    [ -s "$1" ] || head -c 24 /dev/urandom | base64 | tr '+/' '-_' > "$1"
}

make_database() {
    local made=$home/postgres.part
    rm -rf "$made"
    mkdir "$made"
    make_secret "$home/database-password"
    echo "*:*:*:shoal:$(cat "$home/database-password")" > "$PGPASSFILE"
    cp "$home/database-password" "$run/password"
    [ ${#as[@]} = 0 ] || chown "$user" "$made" "$run/password"
    (cd "$run" && "${as[@]}" "$bin/initdb" --pgdata="$made" --encoding=UTF8 --username=shoal --pwfile="$run/password" \
        --auth-local=scram-sha-256 --auth-host=reject) > "$home/initdb.log" 2>&1 ||
        fail "initdb failed, see $home/initdb.log"
    rm "$run/password"
    mv "$made" "$data"
}

postgres() { # start|stop|restart
    local options=()
    [ "$1" = stop ] || options=(--log="$run/postgres.log" --options="-c listen_addresses='' -c unix_socket_directories='$run'")
    (cd "$run" && "${as[@]}" "$bin/pg_ctl" "$1" --wait --silent --pgdata="$data" "${options[@]}") > /dev/null
}

start_postgres() {
    postgres start || fail "PostgreSQL does not start, see $run/postgres.log"
    for name in mlflow mlflow_auth; do
        "$bin/psql" -qAt -d postgres -c "select 1 from pg_database where datname = '$name'" | grep -q 1 ||
            "$bin/createdb" "$name"
    done
}
