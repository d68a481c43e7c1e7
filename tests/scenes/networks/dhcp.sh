#!/bin/sh
# What udhcpc runs: as Debian's script, which writes resolv.conf with every lease and renewal, and
# with the routes of option 121, which Debian's leaves alone and other DHCP clients do not.
case $1 in
deconfig)
    ip link set "$interface" up
    ip -4 address flush dev "$interface"
    ;;
bound | renew)
    for old in $(ip -4 -o address show dev "$interface" | awk '{ print $4 }'); do
        [ "$old" = "$ip/$mask" ] || ip address del "$old" dev "$interface"
    done
    ip address replace "$ip/$mask" dev "$interface"
    ip -4 route flush dev "$interface" proto dhcp
    # RFC 3442: who sends option 121 means it in place of option 3.
    if [ -n "$staticroutes" ]; then
        # shellcheck disable=SC2086
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            ip route replace "$1" via "$2" dev "$interface" proto dhcp
            shift 2
        done
    elif [ -n "$router" ]; then
        ip route replace default via "${router%% *}" dev "$interface" proto dhcp
    fi
    for server in $dns; do
        echo "nameserver $server"
    done >/etc/resolv.conf
    echo configured
    ;;
esac
