#!/bin/sh
# Build the Python engine, in steps that `make engines` and `make interpreters` tell apart:
#
#     build.sh library WORK             fetch the sources; CPython and zlib as libraries. Takes minutes.
#     build.sh engine WORK ENGINE.wasm  freeze the modules and link. Takes seconds.
#     build.sh command WORK PYTHON.wasm the same as an ordinary command.
#
# Same sources and tools, same bytes, wherever WORK is.
set -eu

# CPython's Makefile needs make's own rules, which ours turns off; and the user's flags are not for it.
unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CPPFLAGS LDFLAGS

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)

# Of the version that is built: it compiles the modules, here and in CPython's own build.
: "${PYTHON_BUILD:=/usr/bin/python3.11}"
: "${CLANG:=clang-14}"
: "${LLVM_AR:=llvm-ar-14}"
: "${JOBS:=2}"

# Debian 12's sources as their authors published them.
pool=http://deb.debian.org/debian/pool/main
python=python3.11_3.11.2.orig.tar.gz
python_sha256=2411c74bda5bbcfcddaf4531f66d1adc73f247f529aee981b029513aefdbf849
zlib=zlib_1.2.13.dfsg.orig.tar.bz2
zlib_sha256=71feb7947e3c00ef125f83b79a4e529bde31171e5babe48b391f06758d1ab0a1

wasi="$CLANG --target=wasm32-wasi -ffile-prefix-map=$work=."
optimize="-DNDEBUG -fwrapv -O2 -w"
emulated="-lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks"

fetch() { # DIRECTORY FILE SHA256
    if ! echo "$3  $2" | sha256sum --check --status 2>/dev/null; then
        rm -f "$2"
        /usr/lib/apt/apt-helper -qq -o Acquire::Retries=3 \
            download-file "$pool/$1/$2" "$2" "SHA256:$3"
    fi
}

unpack() { # FILE SHA256 DIRECTORY
    echo "$2  $1" | sha256sum --check --quiet
    rm -rf unpacked "$3"
    "$PYTHON_BUILD" -m tarfile -e "$1" unpacked
    mv unpacked/* "$3"
    rmdir unpacked
}

quietly() { # COMMAND...
    "$@" >log 2>&1 || {
        tail -40 log >&2
        exit 1
    }
}

build_zlib() {
    mkdir -p zlib
    for name in adler32 compress crc32 deflate infback inffast inflate inftrees trees uncompr zutil; do
        $wasi $optimize -DHAVE_UNISTD_H -c "../zlib/$name.c" -o "zlib/$name.o"
    done
    rm -f zlib/libz.a
    $LLVM_AR rcs zlib/libz.a zlib/*.o
}

# All modules in one library. Programs and shared modules are not built.
build_python() {
    mkdir -p Modules
    cp "$here/Setup.local" Modules/
    # No pkg-config: it would find this machine's libraries.
    CONFIG_SITE=../python/Tools/wasm/config.site-wasm32-wasi \
        CC="$wasi" CPP="$wasi -E" AR="$LLVM_AR" RANLIB="$LLVM_AR s" LDSHARED=false PKG_CONFIG=false \
        OPT="$optimize" LIBS="$emulated" \
        CPPFLAGS="-D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS" \
        ZLIB_CFLAGS="-I../zlib" ZLIB_LIBS="-Lzlib -lz" \
        quietly ../python/configure --host=wasm32-unknown-wasi --build=x86_64-pc-linux-gnu \
        --with-build-python="$PYTHON_BUILD" --with-pymalloc --without-doc-strings --disable-ipv6 \
        --disable-test-modules --without-ensurepip
    quietly make -j"$JOBS" libpython3.11.a
}

build_library() {
    cd "$work"
    fetch p/python3.11 "$python" "$python_sha256"
    fetch z/zlib "$zlib" "$zlib_sha256"
    unpack "$zlib" "$zlib_sha256" zlib
    unpack "$python" "$python_sha256" python
    patch --quiet -p1 -d python <"$here/cpython.patch"
    rm -rf build
    mkdir build
    cd build
    build_zlib
    build_python
}

link() { # DIRECTORY-OF-BUILD MAIN RESULT.wasm "LINKER'S OPTIONS" [MODULE-OF-PRELUDE...]
    library=$work/build
    mkdir -p "$1" "$(dirname "$3")"
    result=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
    main=$2
    options=$4
    cd "$1"
    shift 4
    # Its own randomness, and modules of the machine, would be in the result.
    PYTHONHASHSEED=0 "$PYTHON_BUILD" -S -s -B "$here/freeze.py" ../python/Lib "$here/prelude" . "$@"
    include="-I../python/Include -I../python/Include/internal -I$library"
    cp "$here/$main.c" .
    $wasi $optimize $include -Wall -Wextra -Werror -std=gnu17 -c "$main.c" -o "$main.o"
    $wasi $optimize $include -c modules.c -o modules_table.o
    $wasi -c modules.s -o modules.o
    # The stack lies first: one that is too deep traps, and writes over nothing.
    $wasi $options -Wl,--strip-all -Wl,--stack-first -Wl,-z,stack-size=8388608 \
        -o linked.wasm "$main.o" modules_table.o modules.o "$library/libpython3.11.a" \
        "$library/Modules/_decimal/libmpdec/libmpdec.a" "$library/Modules/expat/libexpat.a" \
        "$library/zlib/libz.a" $emulated -lm
    chmod 644 linked.wasm
    mv linked.wasm "$result"
}

case "$1" in
    library) build_library ;;
    engine) link "$work/build" main "$3" "-nostartfiles -Wl,--no-entry" ;;
    command) # without what needs the shim's own imports
        link "$work/command" command "$3" "" _asyncio_events _sysconfigdata__wasi_wasm32-wasi
        ;;
    *)
        echo "build.sh: no step $1" >&2
        exit 2
        ;;
esac
