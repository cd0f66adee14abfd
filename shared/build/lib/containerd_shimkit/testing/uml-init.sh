#!/bin/sh
# Process 1 of a User-Mode-Linux machine: uml-init.sh plain|systemd DIRECTORY PROJECT
#
# The host's root, read-only by hostfs, becomes the lower layer of an overlay: the machine sees all
# that is installed and writes to memory only. DIRECTORY, with the command, and PROJECT are the host's.
set -eu

kind="$1" directory="$2" project="$3"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

root=/mnt/root
modules=/usr/lib/uml/modules

mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir $root /mnt/upper /mnt/work /mnt/project
insmod "$modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay $root
# modprobe, which the kernel calls too, finds them there.
mkdir -p $root/lib/modules
mount --bind $modules $root/lib/modules

# An overlay is no upper layer of another one: containerd has to work on tmpfs. Whatever the host
# has there is hidden, except the project.
mount --bind "$root$project" /mnt/project
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount -t tmpfs -o mode=755 tmpfs $root/run
mkdir -p "$root$project" $root/run/uml $root/run/lock
mount --bind /mnt/project "$root$project"
mount -t hostfs -o "$directory" hostfs $root/run/uml

mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t devtmpfs devtmpfs $root/dev
mkdir -p $root/dev/pts $root/dev/shm $root/dev/mqueue
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount -t mqueue mqueue $root/dev/mqueue
[ ! -d $root/sys/kernel/security ] || mount -t securityfs securityfs $root/sys/kernel/security
[ ! -d $root/sys/fs/selinux ] || mount -t selinuxfs selinuxfs $root/sys/fs/selinux
if [ "${cgroups:-}" = hybrid ]; then
    # systemd keeps what is there, and mounts the controllers of version 1 beside it.
    mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
    mkdir $root/sys/fs/cgroup/unified $root/sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 $root/sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup $root/sys/fs/cgroup/systemd
else
    mount -t cgroup2 -o nsdelegate cgroup2 $root/sys/fs/cgroup
fi

cd $root
mkdir run/old
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old

ip link set lo up
hostname uml
# The command's own stream, without the kernel's messages and as it was written.
stty -F /dev/tty1 raw -echo

if [ "$kind" = systemd ]; then
    # Nothing that the host has enabled, and no first boot.
    mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system
    echo 0123456789abcdef0123456789abcdef >/etc/machine-id
    cat >/etc/systemd/system/uml.service <<UNIT
[Unit]
Description=The command of this machine
Requires=basic.target dbus.socket
After=basic.target dbus.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh /run/uml/command
TimeoutStartSec=infinity
UNIT
    exec /lib/systemd/systemd --unit=uml.service --log-target=kmsg --show-status=error
fi

for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
sh /run/uml/command || true
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
