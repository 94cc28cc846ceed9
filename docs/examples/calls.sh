#!/usr/bin/env bash
# The life of an upgrade over the published API, by curl: log in, register a device, upload a package, make a group and a
# task, look at them, subscribe to notices, and clean up. Needs a server and an application of it.
#
#   OPENIODM_URL=http://127.0.0.1:8743 OPENIODM_APP_ID=... OPENIODM_SECRET=... docs/examples/calls.sh
#
# For https with a CA of your own also CURL_CA_BUNDLE=tls/ca.crt. Of every call it prints the request, the HTTP status and
# the body. It ends with 1 when one is not answered as expected.
set -euo pipefail
: "${OPENIODM_URL:?}" "${OPENIODM_APP_ID:?}" "${OPENIODM_SECRET:?}"

UPGRADES=/iodm/northbound/v1.5.0
PRODUCT='"deviceType":"SmartMeter","model":"SM-100","manufacturerName":"Acme"'

# The text of a member of a JSON body.
member() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$BODY"; }

# call STATUS METHOD PATH [CURL'S ARGUMENTS]: leaves the answer in BODY.
call() {
  local expected=$1 method=$2 path=$3 answer status
  shift 3
  answer=$(curl -sS -X "$method" "$OPENIODM_URL$path" "$@" -w '\n%{http_code}')
  status=${answer##*$'\n'}
  BODY=${answer%$'\n'*}
  printf '$ %s %s\n%s\n%s\n\n' "$method" "$path" "$status" "$BODY"
  [[ $status == "$expected" ]]
}

call 200 POST /iocm/app/sec/v1.1.0/login \
  --data-urlencode "appId=$OPENIODM_APP_ID" --data-urlencode "secret=$OPENIODM_SECRET"
AUTH=(-H "app_key: $OPENIODM_APP_ID" -H "Authorization: Bearer $(member accessToken)")
JSON=("${AUTH[@]}" -H "Content-Type: application/json")

call 200 POST /iocm/app/reg/v1.1.0/deviceCredentials "${JSON[@]}" \
  -d "{\"nodeId\":\"example-1\",\"deviceInfo\":{\"name\":\"an example\",$PRODUCT}}"
DEVICE=$(member deviceId)

# The published API has no upload: this is ours. The body is the file itself.
call 201 POST "/api/v1/packages?type=firmwarePackage&name=meter.swu&version=V1.1.0&deviceType=SmartMeter&model=SM-100&manufacturerName=Acme" \
  "${AUTH[@]}" -H "Content-Type: application/octet-stream" --data-binary "an image"
FILE=$(member fileId)

call 201 POST /iocm/app/devgroup/v1.3.0/devGroups "${JSON[@]}" -d "{\"name\":\"examples\",\"deviceIds\":[\"$DEVICE\"]}"
GROUP=$(member id)

call 200 POST /iodm/app/sub/v1.1.0/subscribe "${JSON[@]}" \
  -d '{"notifyType":"fwUpgradeResultNotify","callbackUrl":"https://app.example.com:8443/notices"}'
call 200 GET "/iocm/app/sub/v1.2.0/subscriptions?pageNo=0&pageSize=10" "${AUTH[@]}"

call 200 POST $UPGRADES/operations/firmwareUpgrade "${JSON[@]}" -d "{\"fileId\":\"$FILE\",
  \"targets\":{\"deviceGroups\":[\"examples\"],$PRODUCT},
  \"policy\":{\"executeType\":\"device_online\",\"retryType\":true,\"retryTimes\":2}}"
TASK=$(member operationId)

call 200 GET "$UPGRADES/operations?operationType=firmware_upgrade&pageNo=0&pageSize=10" "${AUTH[@]}"
call 200 GET "$UPGRADES/operations/$TASK" "${AUTH[@]}"
call 200 GET "$UPGRADES/operations/$TASK/subOperations?pageNo=0&pageSize=10" "${AUTH[@]}"

# Nor has it a stop: ours again.
call 204 POST "/api/v1/tasks/$TASK/stop" "${AUTH[@]}"

call 204 DELETE /iocm/app/sub/v1.2.0/subscriptions "${AUTH[@]}"
call 200 DELETE "/iocm/app/devgroup/v1.3.0/devGroups/$GROUP" "${AUTH[@]}"
call 204 DELETE "/iocm/app/dm/v1.4.0/devices/$DEVICE" "${AUTH[@]}"
