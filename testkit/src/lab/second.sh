#!/bin/sh
# The lab's init, part two, in the machine's root: does the job, tells its exit code, switches the lab off.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
control=/run/lab/control
# Which disk gets which number is up to the kernel: their serials name them, as udev would have it.
mkdir -p /dev/disk/by-id
for disk in /sys/block/nvme*n1; do
    [ -e "$disk" ] && ln -s "/dev/${disk##*/}" "/dev/disk/by-id/$(tr -d ' ' <"$disk/device/serial")"
done
# A sign of life: under emulation a lab with KVM guests in it stands still now and then.
while sleep 1; do cat /proc/uptime >$control/alive; done &
if [ -e $control/at-terminal ]; then
    setsid --ctty --wait sh $control/job </dev/ttyS0 >/dev/ttyS0 2>&1
else
    sh $control/job </dev/null >$control/stdout 2>$control/stderr
fi
code=$?
# What was written to mapped files.
sync --file-system /run/lab/out
echo $code >$control/exit-code
busybox poweroff -f
