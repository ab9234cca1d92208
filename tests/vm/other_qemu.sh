#!/bin/bash
# The QEMU of another Debian's backports, beside this machine's own, which stays as it is:
#   LOCKSTEP_VM_QEMU=$(tests/vm/other_qemu.sh trixie FOLDER) pytest tests/vm
# Unpacks that Debian into FOLDER (root, debootstrap; 400 MB) once, and prints the command that runs its QEMU here.
set -euo pipefail
release=$1 folder=$(realpath -m "$2")
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$')  # where this machine's packages come from
libraries=usr/lib/$(uname -m)-linux-gnu
if [ ! -x "$folder/qemu" ]; then
    debootstrap --variant=minbase "$release" "$folder" "$mirror" >&2
    echo "deb $mirror $release-backports main" >"$folder/etc/apt/sources.list.d/backports.list"
    chroot "$folder" apt-get update >&2
    chroot "$folder" apt-get install -y --no-install-recommends -t "$release-backports" qemu-system-x86 >&2
    cat >"$folder/qemu" <<END
#!/bin/sh
there=$folder
export QEMU_MODULE_DIR="\$there/$libraries/qemu"
exec "\$there/$libraries/ld-linux-x86-64.so.2" --library-path "\$there/$libraries" \\
    "\$there/usr/bin/qemu-system-x86_64" -L "\$there/usr/share/seabios" -L "\$there/usr/share/qemu" "\$@"
END
    chmod +x "$folder/qemu"
fi
echo "$folder/qemu"
