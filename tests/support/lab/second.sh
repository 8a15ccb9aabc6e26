#!/bin/sh
# The lab's init, part two, in the machine's root: loads KVM, does the job, tells its exit code, switches the lab off.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
control=/run/lab/control
busybox modprobe kvm-amd 2>/dev/null || busybox modprobe kvm-intel 2>/dev/null
if [ -e $control/at-terminal ]; then
    setsid --ctty --wait sh $control/job </dev/ttyS0 >/dev/ttyS0 2>&1
else
    setsid --wait sh $control/job </dev/null >$control/stdout 2>$control/stderr
fi
code=$?
# What was written to mapped files.
sync --file-system /run/lab/out
echo $code >$control/exit-code.part
mv $control/exit-code.part $control/exit-code
busybox poweroff -f
