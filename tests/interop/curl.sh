#!/usr/bin/env bash
# curl -N shows a stream, and its end. Whoever wants to go on keeps the last whole event's id, and asks
# again with that.
url=$1 last='' retry=1000
while :; do
  id='' event='' data=''
  # An unfinished line ends the loop, an unfinished event is forgotten.
  while IFS= read -r line; do
    case $line in
      'id: '*) id=${line#id: } ;;
      'event: '*) event=${line#event: } ;;
      'data: '*) data+=${data:+\\n}${line#data: } ;;
      'retry: '*) retry=${line#retry: } ;;
      '')
        last=${id:-$last}
        [[ -z $data || $event == tabcast:* ]] || printf '%s %s\n' "$id" "$data"
        event='' data=''
        ;;
    esac
  done < <(curl -sN -H "Last-Event-ID: $last" "$url")
  sleep "$((retry / 1000)).$(printf %03d $((retry % 1000)))"
done
