#!/bin/sh
# Have Debian's packages installed that a target needs: packages.sh need|want GROUP...
#
# need: without them the target cannot go on.  want: without them some tests are skipped.
# Nothing is done, and no package list is read, where everything is there already.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
PYTHON="${PYTHON:-python3}"
mode="$1"
shift

# One at a time: `make -j` may ask for two groups at once, and apt waits for one lock only.
exec 9<"$0"
flock 9

have() { command -v "$1" >/dev/null 2>&1; }

is_static() { have "$1" && ! ldd "$(command -v "$1")" >/dev/null 2>&1; }

# Without gcc the libraries beside it are taken for missing too, and asked for once more.
has_library() { have gcc && [ "$(gcc "-print-file-name=$1")" != "$1" ]; }

has_wasm_toolchain() {
    have clang-14 && have wasm-ld-14 && [ -d /usr/include/wasm32-wasi ] &&
        [ -n "$(find /usr/lib -name 'libclang_rt.builtins-wasm32.a' 2>/dev/null)" ] &&
        [ -x /usr/bin/rustc ] &&
        [ -d "$(/usr/bin/rustc --print target-libdir --target wasm32-wasi 2>/dev/null)" ]
}

missing_of() {
    case "$1" in
        python) "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv ;;
        build) # the binaries: the launcher's compiler and libraries, and what goes into them
            { have gcc && have strip; } || echo gcc binutils
            has_library libc.a || echo libc6-dev
            has_library libzstd.a || echo libzstd-dev
            has_library libseccomp.so.2 || echo libseccomp2
            have zstd || echo zstd
            ;;
        containerd)
            { have containerd && have ctr; } || echo containerd
            have runc || echo runc
            ;;
        curl) have curl || echo curl ;;
        busybox) is_static busybox || echo busybox-static ;;
        cni)
            [ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
            have ip || echo iproute2
            have iptables || echo iptables
            ;;
        wrk) have wrk || echo wrk ;;
        uml) # machines of their own for tests: another kernel, systemd, security modules
            have linux.uml || echo user-mode-linux
            have insmod || echo kmod
            [ -x /lib/systemd/systemd ] || echo systemd
            have dbus-daemon || echo dbus
            have apparmor_parser || echo apparmor
            have secilc || echo secilc
            ;;
        redis) have redis-server || echo redis-server ;;
        servers) # what guests connect to in tests
            have redis-server || echo redis-server
            [ -n "$(find /usr/lib/postgresql -name initdb 2>/dev/null)" ] || echo postgresql
            have mariadbd || echo mariadb-server
            have mosquitto || echo mosquitto
            have nats-server || echo nats-server
            have etcd || echo etcd-server
            have openssl || echo openssl
            have node || echo nodejs
            have npm || echo npm
            have java || echo default-jre-headless
            have mvn || echo maven
            ;;
        engines) # beside the toolchain of the guests: what CPython is built with
            have patch || echo patch
            have llvm-ar-14 || echo llvm-14=1:14.0.6-12
            [ -x /usr/bin/python3.11 ] || echo python3.11
            ;;
        deployments) # what checks their scripts, and what builds, stores and reads images beside containerd
            have shellcheck || echo shellcheck
            have skopeo || echo skopeo
            have buildah || echo buildah
            have dockerd || echo docker.io
            have docker-registry || echo docker-registry
            ;;
        guests) has_wasm_toolchain || echo "${GUESTS_PACKAGES:?}" ;;
        *)
            echo "packages.sh: no group $1" >&2
            exit 2
            ;;
    esac
}

packages=""
for group in "$@"; do
    packages="$packages $(missing_of "$group")"
done
packages=$(echo $packages)
[ -n "$packages" ] || exit 0

if have apt-get && [ "$(id -u)" -eq 0 ]; then
    echo "installing Debian packages: $packages"
    export DEBIAN_FRONTEND=noninteractive
    options="-qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300"
    if apt-get $options update && apt-get $options install -y --no-install-recommends $packages </dev/null; then
        exit 0
    fi
    hint="apt-get could not install: $packages"
elif have apt-get; then
    hint="some packages are missing; run as root: apt-get install $packages"
else
    hint="install with this system's package manager what Debian calls: $packages"
fi

echo "$hint" >&2
[ "$mode" = want ]
