#!/bin/sh
# Becomes systemd, as PID 1 of namespaces that it was started in: of processes, mounts,
# control groups, host name. $1: a directory with units, and room for what is written
# to /etc and /usr/local. Nothing outside is changed.
set -eu
dir=$1
mount --make-rprivate /
mount -t proc proc /proc
# What systemd would set for the whole machine stays as it is.
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for over in etc usr/local; do
	mkdir -p "$dir/upper/$over" "$dir/work/$over"
	mount -t overlay -o "lowerdir=/$over,upperdir=$dir/upper/$over,workdir=$dir/work/$over" "$over" "/$over"
done
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=755 dev /dev
for node in 'null 3' 'zero 5' 'full 7' 'random 8' 'urandom 9'; do
	mknod -m 666 "/dev/${node% *}" c 1 "${node#* }"
done
mknod -m 666 /dev/tty c 5 0
mkdir /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
mkdir -p /etc/baton /usr/local/bin
cp -r "$dir/units" /etc/units
cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald.socket \
	/lib/systemd/system/systemd-journald-dev-log.socket /etc/units
mount -t tmpfs -o mode=1777 tmp /tmp # what systemd leaves there when it is killed
mount -t tmpfs -o mode=1777 tmp /var/tmp
exec env -i container=baton PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	SYSTEMD_UNIT_PATH=/etc/units SYSTEMD_GENERATOR_PATH= SYSTEMD_ENVIRONMENT_GENERATOR_PATH= \
	/lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
