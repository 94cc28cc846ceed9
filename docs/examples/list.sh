#!/usr/bin/env bash
# The task list with each of its eight query parameters, by curl. Needs a server with at least one task.
#
#   OPENIODM_URL=http://127.0.0.1:8743 OPENIODM_APP_ID=... OPENIODM_SECRET=... docs/examples/list.sh
#
# Of every call it prints the request, the HTTP status and the body. It ends with 1 when one is not answered 200.
set -euo pipefail
: "${OPENIODM_URL:?}" "${OPENIODM_APP_ID:?}" "${OPENIODM_SECRET:?}"

OPERATIONS=/iodm/northbound/v1.5.0/operations

# The text of a member of a JSON body; of a list of texts, its first.
member() { sed -n "s/.*\"$1\":\[\{0,1\}\"\([^\"]*\)\".*/\1/p"; }

TOKEN=$(curl -sS "$OPENIODM_URL/iocm/app/sec/v1.1.0/login" \
  --data-urlencode "appId=$OPENIODM_APP_ID" --data-urlencode "secret=$OPENIODM_SECRET" | member accessToken)

# get PATH [NAME=VALUE...]: curl encodes the values.
get() {
  local path=$1 query=()
  shift
  for pair in "$@"; do query+=(--data-urlencode "$pair"); done
  curl -sS --get "$OPENIODM_URL$path" "${query[@]}" \
    -H "app_key: $OPENIODM_APP_ID" -H "Authorization: Bearer $TOKEN" -w '\n%{http_code}\n'
}

list() {
  local answer status
  answer=$(get "$OPERATIONS" "$@")
  status=${answer##*$'\n'}
  printf '$ GET %s %s\n%s\n%s\n\n' "$OPERATIONS" "$*" "$status" "${answer%$'\n'*}"
  [[ $status == 200 ]]
}

# A task to ask for: the newest one's type, status, product, and one of its devices.
newest=$(get "$OPERATIONS" pageSize=1)
id=$(member operationId <<<"$newest")
: "${id:?there is no task yet}"
device=$(get "$OPERATIONS/$id/subOperations" pageSize=1 | member deviceId)

list "operationType=$(member operateType <<<"$newest")"
list "operationStatus=$(member status <<<"$newest")"
list "deviceType=$(member deviceType <<<"$newest")"
list "model=$(member model <<<"$newest")"
list "manufacturerName=$(member manufacturerName <<<"$newest")"
list "deviceId=$device"
list pageNo=0
list pageSize=1
list "operationType=$(member operateType <<<"$newest")" "operationStatus=$(member status <<<"$newest")" \
  "deviceType=$(member deviceType <<<"$newest")" "model=$(member model <<<"$newest")" \
  "manufacturerName=$(member manufacturerName <<<"$newest")" "deviceId=$device" pageNo=0 pageSize=10
