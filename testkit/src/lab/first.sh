#!/bin/busybox sh
# The lab's init, part one, in the initramfs: makes the machine's own root, read-only, the lower half of a root that can be
# written to, and goes there. A command that fails ends it, which the kernel answers with a panic that the host sees.
set -e
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
if grep -qw lab.trial /proc/cmdline; then
    echo "lab: the trial boot works"
    poweroff -f
fi
for module in $(cat /modules/order); do
    case $module in
    */kvm-amd.ko) grep -qw svm /proc/cpuinfo || continue ;;
    */kvm-intel.ko) grep -qw vmx /proc/cpuinfo || continue ;;
    esac
    insmod "$module"
done

mkdir /host /writes /new
mount -t virtiofs -o ro root /host
mount -t tmpfs -o mode=755 writes /writes
mkdir /writes/upper /writes/work
mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work overlay /new

# Fresh ones over what the machine itself has mounted there.
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs devtmpfs /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs -o mode=755 tmpfs /new/run
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t bpf bpf /new/sys/fs/bpf
mount -t debugfs debugfs /new/sys/kernel/debug
mount -t tracefs tracefs /new/sys/kernel/tracing
mount -t securityfs securityfs /new/sys/kernel/security

mkdir -p /new/run/lab/control /new/run/lab/out
mount -t virtiofs control /new/run/lab/control
mount -t virtiofs out /new/run/lab/out
if [ -s /modules/folder ] && [ ! -e "/new/lib/modules/$(uname -r)" ]; then
    mkdir -p /new/lib/modules
    ln -s "$(cat /modules/folder)" "/new/lib/modules/$(uname -r)"
fi
ip link set lo up
hostname lab
umount /proc
exec switch_root /new /run/lab/control/init
