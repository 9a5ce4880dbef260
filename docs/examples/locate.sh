#!/bin/sh
# Answers `request:locate` from a file of lines "user contact".
# 0 with output: a reply. 0 without: nothing to say. 75: try later (486). Else: failed (500).

contacts="${CONTACTS:-contacts.txt}"
[ -r "$contacts" ] || { echo "cannot read $contacts" >&2; exit 1; }
[ -e "$contacts.lock" ] && exit 75

user=$(cat)
awk -v user="$user" '$1 == user { print $2; exit }' "$contacts"
