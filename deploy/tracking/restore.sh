#!/usr/bin/env bash
# A backup into a new TRACKING_HOME, on this host or another one: TRACKING_HOME=... deploy/tracking/restore.sh FOLDER
# Then start.sh, with the MLflow of the backup or a newer one (`mlflow db upgrade` first where it asks for it).
. "$(dirname "$(readlink -f "$0")")/common.sh"

source=${1:?usage: restore.sh FOLDER}
[ -f "$source/mlflow.dump" ] || fail "'$source' is no backup: it holds no mlflow.dump"
[ ! -e "$data" ] || fail "$home holds a database: set TRACKING_HOME to a new folder"
make_database
start_postgres
trap 'postgres stop' EXIT
for name in mlflow mlflow_auth; do
    "$bin/pg_restore" --exit-on-error --no-owner --dbname="$name" "$source/$name.dump"
done
cp "$source/admin-password" "$home/"
if [ -d "$source/artifacts" ]; then
    mkdir -p "$artifacts"
    cp -a "$source/artifacts/." "$artifacts/"
fi
echo "restored into $home"
