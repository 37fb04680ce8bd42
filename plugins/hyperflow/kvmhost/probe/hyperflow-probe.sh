#!/bin/sh
# Hyperflow's boot probe. It lives only on a throw-away overlay, and tells the host over a virtio-serial port (or,
# in a kernel without virtio_console, over the serial console) what became of this guest: one line a fact,
#   hyperflow-probe NONCE KEY VALUE-AS-HEX
# in a report that starts with "begin" and ends with "end". Hex, because a value may hold any byte. Reports repeat
# until the host has seen enough: addresses may come up after the boot is finished.
# $1: the nonce of this boot, so that an older probe cannot answer.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
nonce=$1

find_port() {
    for name in /sys/class/virtio-ports/*/name; do
        if [ -r "$name" ] && [ "$(cat "$name")" = org.hyperflow.probe.0 ]; then
            port=${name%/name}
            echo "/dev/${port##*/}"
            return
        fi
    done
    echo /dev/ttyS0
}

emit() { # key; the value comes on standard input
    printf 'hyperflow-probe %s %s %s\n' "$nonce" "$1" "$(od -An -v -tx1 | tr -d ' \n')"
}

report() {
    : | emit begin
    printf %s "$1" | emit state
    if [ "$1" = starting ] || [ "$1" = initializing ]; then
        systemctl list-jobs --no-legend --no-pager 2>/dev/null | emit jobs
        : | emit end
        return
    fi
    systemctl list-units --failed --no-legend --no-pager 2>/dev/null | emit failed
    findmnt -n -P -o SOURCE,UUID,FSTYPE / 2>/dev/null | emit root
    findmnt -n -P -o TARGET,SOURCE,FSTYPE,UUID 2>/dev/null | emit mounts
    lsblk -P -b -o NAME,TYPE,SIZE,FSTYPE,UUID,MOUNTPOINT 2>/dev/null | emit blocks
    for nic in /sys/class/net/*; do
        [ "${nic##*/}" = lo ] && continue
        driver=$(readlink "$nic/device/driver") # none for a bond or a bridge
        # a bond gives all its cards one address, and keeps their own here
        permanent=$(cat "$nic/bonding_slave/perm_hwaddr" 2>/dev/null)
        printf '%s\n%s\n%s\n%s\n%s\n' "${nic##*/}" "$(cat "$nic/address")" "${driver##*/}" \
            "$(cat "$nic/operstate")" "$permanent" | emit nic
    done
    ip -o address show 2>/dev/null | emit addresses
    ip -o route show default 2>/dev/null | emit routes
    uname -r | emit kernel
    cat /proc/sys/kernel/hostname | emit hostname
    cat /proc/cmdline | emit cmdline
    cat /proc/uptime | emit uptime
    cat /etc/os-release 2>/dev/null | emit os
    : | emit end
}

while :; do
    report "$(systemctl is-system-running 2>/dev/null)" >"$(find_port)"
    sleep 2
done
