#!/bin/sh
# The lab's init, part two, in the machine's root: does the job, tells its exit code, switches the lab off.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
control=/run/lab/control
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
