#!/usr/bin/env bash
# All that a tracking server keeps, into a new folder, while it runs: deploy/tracking/backup.sh FOLDER
# The databases come first: the files of all runs that they name are there when the files are copied. Artifacts in an
# object store are left there: it has versions and copies of its own.
. "$(dirname "$(readlink -f "$0")")/common.sh"

target=${1:?usage: backup.sh FOLDER}
[ ! -e "$target" ] || fail "'$target' is there already: name a new folder"
[ -S "$run/.s.PGSQL.5432" ] || fail "no PostgreSQL runs in $home: start the server first"
part=$target.part
rm -rf "$part"
mkdir -p "$part"
for name in mlflow mlflow_auth; do
    "$bin/pg_dump" --format=custom --file="$part/$name.dump" "$name"
done
cp "$home/admin-password" "$part/"
case $artifacts in
    *://*) echo "artifacts stay in $artifacts" ;;
    *) [ ! -d "$artifacts" ] || cp -a "$artifacts" "$part/artifacts" ;;
esac
sync -f "$part"
mv "$part" "$target"
echo "backup in $target: $(du -sh "$target" | cut -f1)"
