#!/bin/sh
# Install the shims on the node of this container, or take them away: install.sh install|uninstall|wait
#
# The container is privileged and sees the processes of the node (hostPID: true). Everything on the
# node is done in its mount namespace, with its sh, cat and mv. What has been done is undone if a
# later step fails.
#
# Exit codes: 0 done; 1 failed, and the node is as it was, without its labels if that was uninstall;
# 3 done, but the API server did not take the labels: running it again is enough.
set -eu

SHIMS="${SHIMS:-spin slight wws}"
# Where this container has the binaries.
SOURCE="${SOURCE:-/opt/containerd-wasm-shims}"
# Where the node gets them; by default /usr/local/bin or what else is writable on containerd's PATH.
INSTALL_DIR="${INSTALL_DIR:-}"
# How long containerd may take to answer again.
WAIT_SECONDS="${WAIT_SECONDS:-120}"
# A process of the node.
HOST_PID="${HOST_PID:-1}"
NODE_NAME="${NODE_NAME:-}"
API_SERVER="${API_SERVER:-}"
API_RETRIES="${API_RETRIES:-5}"
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-/var/run/secrets/kubernetes.io/serviceaccount}"

PREFIX=containerd-wasm-shims
SYSTEM_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin
BACKUP=.before-containerd-wasm-shims

say() { echo "node-installer: $*"; }

warn() { echo "node-installer: $*" >&2; }

# What fail has to undo, in the order in which it was done.
new_files=""    # to be removed
kept_files=""   # were there before, and are now FILE.old
new_handlers="" # of containerd's configuration
tool=""         # a shim that is there while the others come and go
had_state=yes

fail() {
    trap '' TERM INT HUP
    warn "$*"
    undo || true
    exit 1
}

# The binaries first: k3s registers those that it finds when it is restarted.
undo() {
    for file in $new_files; do
        host rm -f "$file"
    done
    for file in $kept_files; do
        host mv -f "$file.old" "$file"
    done
    if [ -n "$new_handlers" ]; then
        set -- --handler "${new_handlers%% *}"
        for handler in $new_handlers; do
            set -- "$@" --with "$handler"
        done
        host "$tool" config --remove --restart "$@" >&2 || true
    fi
    [ -z "$tool" ] || host rm -f "$tool"
    [ "$had_state" = yes ] || remove_state "$cache" "$state"
}

# The node

# Which root a process has, as far as this container may see it.
root_of() { stat --format %d:%i "/proc/$1/root/" 2>/dev/null; }

# Run a program on the node. Nothing of this container's environment goes along.
host() {
    # shellcheck disable=SC2086  # several variables
    nsenter --target "$HOST_PID" --mount -- env -i HOME=/root PATH="$SYSTEM_PATH" $variables "$@"
}

# Those in containers are not the node's.
containerd_pids() {
    for directory in /proc/[0-9]*; do
        [ "$(cat "$directory/comm" 2>/dev/null)" = containerd ] || continue
        [ "$(root_of "${directory#/proc/}")" = "$root" ] || continue
        echo "${directory#/proc/}"
    done
}

variable_of() {
    { tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null | sed -n "s/^$2=//p"
}

look_at_node() {
    variables=""
    root="$(root_of "$HOST_PID")" ||
        fail "cannot see the processes of the node: the pod needs hostPID: true and a privileged container"
    host true 2>/dev/null ||
        fail "cannot enter the mount namespace of the node: the container has to be privileged"
    pid="$(containerd_pids | head -n 1)"
    [ -n "$pid" ] || fail "no containerd runs on this node"
    containerd_path="$(variable_of "$pid" PATH)"
    containerd_path="${containerd_path:-$SYSTEM_PATH}"
    # The shims run by containerd have these from its environment.
    for name in CONTAINERD_WASM_SHIMS_ROOT CONTAINERD_WASM_SHIMS_CACHE CONTAINERD_WASM_SHIMS_RUN; do
        value="$(variable_of "$pid" "$name")"
        case "$value" in
            '') ;;
            *[[:space:]]*) fail "$name of containerd has a space in it: $value" ;;
            *) variables="$variables $name=$value" ;;
        esac
    done
    state="$(variable_of "$pid" CONTAINERD_WASM_SHIMS_ROOT)"
    state="${state:-/var/lib/containerd-wasm-shims}"
    cache="$(variable_of "$pid" CONTAINERD_WASM_SHIMS_CACHE)"
    cache="${cache:-$state/cache}"
    run="$(variable_of "$pid" CONTAINERD_WASM_SHIMS_RUN)"
    run="${run:-/run/containerd-wasm-shims}"
    record="$state/node-installer"
    host test -d "$state" || had_state=no
    first="${SHIMS%% *}"
    for shim in $SHIMS; do
        [ -f "$SOURCE/$(binary "$shim")" ] || fail "there is no $SOURCE/$(binary "$shim")"
    done
}

is_writable() { host test -d "$1" && host test -w "$1"; }

# k3s and RKE2 take shims in the system's directories for others, and replace their own.
choose_directory() {
    if [ -n "$INSTALL_DIR" ]; then
        is_writable "$INSTALL_DIR" || fail "$INSTALL_DIR is not a directory that can be written"
        directory="$INSTALL_DIR"
        return
    fi
    for directory in /usr/local/bin $(echo "$containerd_path" | tr ':' '\n'); do
        case "$directory" in
            /bin | /sbin | /usr/bin | /usr/sbin | */rancher/* | /snap/* | [!/]*) continue ;;
        esac
        case ":$containerd_path:" in
            *":$directory:"*) ;;
            *) continue ;;
        esac
        if is_writable "$directory"; then
            return
        fi
    done
    fail "no directory on containerd's PATH can be written ($containerd_path): set INSTALL_DIR"
}

binary() { echo "containerd-shim-$1-v1"; }

others() {
    for shim in $SHIMS; do
        [ "$shim" = "$first" ] || printf ' --with %s' "$shim"
    done
}

# Write SOURCE/NAME to a file on the node, whole and on the disk.
copy() {
    new_files="$new_files $2"
    # shellcheck disable=SC2016  # for the node's shell
    host sh -c 'umask 022 && cat >"$1" && chmod 755 "$1" && sync "$1"' sh "$2" <"$1" ||
        fail "cannot write $2"
    host cat "$2" | cmp -s - "$1" || fail "$2 is not what was written: is the disk full?"
}

is_recorded() { host cat "$record" 2>/dev/null | grep -qxF "$1"; }

install_binaries() {
    changed=""
    for shim in $SHIMS; do
        name="$(binary "$shim")"
        if host cat "$directory/$name" 2>/dev/null | cmp -s - "$SOURCE/$name"; then
            continue
        fi
        copy "$SOURCE/$name" "$directory/.$name.new"
        host "$directory/.$name.new" -v >/dev/null || fail "$name does not run on this node"
        changed="$changed $name"
    done
    for name in $changed; do
        target="$directory/$name"
        if host test -e "$target"; then
            host ln -f "$target" "$target.old" || fail "cannot keep $target"
            kept_files="$kept_files $target"
        else
            new_files="$new_files $target"
        fi
        host mv -f "$directory/.$name.new" "$target" || fail "cannot write $target"
        say "$target is written"
    done
}

# What was there and is not ours comes back when ours goes.
finish_binaries() {
    for name in $changed; do
        target="$directory/$name"
        is_recorded "$target" && continue
        # shellcheck disable=SC2016  # for the node's shell
        echo "$target" | host sh -c 'mkdir -p -m 700 "${1%/*}" && cat >>"$1"' sh "$record" ||
            fail "cannot write $record"
        if host test -e "$target.old"; then
            say "what $target was is kept as $target$BACKUP"
            host mv -f "$target.old" "$target$BACKUP" || fail "cannot keep what $target was"
        fi
    done
    for target in $kept_files; do
        host rm -f "$target.old"
    done
}

configure() {
    failed=no
    # shellcheck disable=SC2046  # several words
    output="$(host "$tool" config --write --restart $(others) 2>&1)" || failed=yes
    new_handlers="$(echo "$output" | sed -n 's/^.*: \([^ ]*\) is written$/\1/p' | xargs)"
    echo "$output"
    [ "$failed" = no ] || fail "containerd was not told of the shims"
}

# Until containerd answers and knows each shim.
check() {
    for shim in $SHIMS; do
        deadline=$(($(date +%s) + WAIT_SECONDS))
        until findings="$(host "$directory/$(binary "$shim")" doctor 2>&1)"; do
            if [ "$(date +%s)" -ge "$deadline" ]; then
                echo "$findings" >&2
                fail "this node is not ready for $shim apps"
            fi
            sleep 1
        done
    done
}

# The API server

# Set the labels of the node to $1: "true" in quotes, or null to take them away.
label() {
    [ -n "$NODE_NAME" ] || {
        say "NODE_NAME is not set: the node gets no labels"
        return 0
    }
    if [ -z "$API_SERVER" ]; then
        case "${KUBERNETES_SERVICE_HOST:?}" in
            *:*) API_SERVER="https://[$KUBERNETES_SERVICE_HOST]:${KUBERNETES_SERVICE_PORT:-443}" ;;
            *) API_SERVER="https://$KUBERNETES_SERVICE_HOST:${KUBERNETES_SERVICE_PORT:-443}" ;;
        esac
    fi
    labels="\"$PREFIX/installed\":$1"
    for shim in $SHIMS; do
        labels="$labels,\"$PREFIX/$shim\":$1"
    done
    # The token is not for the list of processes.
    curl --silent --show-error --fail --output /dev/null --max-time 20 \
        --retry "$API_RETRIES" --retry-connrefused --config - \
        --request PATCH --header 'Content-Type: application/merge-patch+json' \
        --data "{\"metadata\":{\"labels\":{$labels}}}" \
        "$API_SERVER/api/v1/nodes/$NODE_NAME" <<END
cacert = "$SERVICE_ACCOUNT/ca.crt"
header = "Authorization: Bearer $(cat "$SERVICE_ACCOUNT/token")"
END
}

# What to do

install() {
    look_at_node
    choose_directory
    install_binaries
    tool="$directory/.containerd-wasm-shims-installer"
    host ln -f "$directory/$(binary "$first")" "$tool" || fail "cannot write $tool"
    configure
    check
    finish_binaries
    host rm -f "$tool"
    trap - TERM INT HUP
    say "the node runs $SHIMS"
    label '"true"' || {
        warn "the node has no labels: the API server did not take them; pods that ask for them do not come here"
        exit 3
    }
}

# A pod that still runs has its shim's files open, and its containerd has to know the runtime.
running_shims() {
    for directory in /proc/[0-9]*; do
        { line="$(tr '\0' ' ' <"$directory/cmdline")"; } 2>/dev/null || continue
        case "$line" in
            containerd-shim-*-v1\ *-id\ *) ;;
            *) continue ;;
        esac
        [ "$(root_of "${directory#/proc/}")" = "$root" ] || continue
        for shim in $SHIMS; do
            case "$line" in
                "$(binary "$shim") "*) echo "${directory#/proc/}" ;;
            esac
        done
    done
}

stop_zygotes() {
    for directory in /proc/[0-9]*; do
        { line="$(tr '\0' ' ' <"$directory/cmdline")"; } 2>/dev/null || continue
        [ "$(root_of "${directory#/proc/}")" = "$root" ] || continue
        case "$line" in
            "containerd-shim-"*"-v1 zygote $run/"*) kill "${directory#/proc/}" 2>/dev/null || true ;;
        esac
    done
}

# Only what is ours: where these directories are, containerd's environment says.
remove_state() {
    for directory in "$@"; do
        # shellcheck disable=SC2016  # for the node's shell
        host sh -c '[ -d "$1" ] || exit 0
            cd "$1" && rm -rf .lock .new-* runtime-* spin-* slight-* wws-* *.sock *.lock *.cwasm \
                node-installer && cd / && rmdir "$1"' sh "$directory" ||
            warn "$directory has more in it than the shims': it stays"
    done
}

uninstall() {
    SHIMS="spin slight wws"
    look_at_node
    count="$(running_shims | wc -l)"
    [ "$count" -eq 0 ] || fail "pods still run with these shims ($count): delete them first"
    labelled=yes
    label null || labelled=no
    choose_directory
    tool="$directory/.containerd-wasm-shims-installer"
    name="$directory/$(binary "$first")"
    if is_recorded "$name" && host ln -f "$name" "$tool"; then
        new_files="$tool"
    else
        copy "$SOURCE/$(binary "$first")" "$tool"
    fi
    for target in $(host cat "$record" 2>/dev/null); do
        host test -e "$target" || continue
        host mv -f "$target" "$target.old" || fail "cannot remove $target"
        kept_files="$kept_files $target"
    done
    # shellcheck disable=SC2046  # several words
    host "$tool" config --remove --restart $(others) || fail "containerd's configuration stays as it is"
    deadline=$(($(date +%s) + WAIT_SECONDS))
    until host "$tool" doctor 2>&1 | grep -q "runs pods for who asks"; do
        [ "$(date +%s)" -lt "$deadline" ] || fail "containerd does not run pods any more"
        sleep 1
    done
    for target in $kept_files; do
        host rm -f "$target.old"
        ! host test -e "$target$BACKUP" || host mv -f "$target$BACKUP" "$target"
        say "$target is removed"
    done
    host rm -f "$tool"
    stop_zygotes
    remove_state "$cache" "$run" "$state"
    say "the shims are gone from this node"
    [ "$labelled" = yes ] || {
        warn "the node still has its labels: the API server did not take them away"
        exit 3
    }
}

# For the container that keeps the pod there when the installation is done.
wait_for_the_end() {
    sleep infinity &
    sleeping=$!
    trap 'kill "$sleeping"; exit 0' TERM INT
    wait "$sleeping"
}

case "${1:-}" in
    install | uninstall)
        trap 'fail "stopped"' TERM INT HUP
        "$1"
        ;;
    wait) wait_for_the_end ;;
    *)
        warn "install.sh install|uninstall|wait"
        exit 64
        ;;
esac
