#!/bin/sh
# Bring brokers and a Python newer than this machine's own, from Debian's unstable suite, in a tree of their own:
#     newest_brokers.sh FOLDER
# Needs root, Debian, and some minutes; takes 1.2 GB. It must not lie inside the
# repository, since setuptools reads all that does. FOLDER gets
#     tree        the file system that they run in
#     run         runs a command in the tree: run python3.14 -m venv /venv
#     rabbitmq    programs for KOMBULITE_TEST_PROGRAMS: RabbitMQ, Redis, PostgreSQL and PgBouncer
#     valkey      Valkey in the place of Redis, and none of the others
# Nothing is installed on the machine but debootstrap. What a command finds mounted in the tree (/tmp, /dev, /proc, this
# repository, the home folder, how the machine reaches the network) is mounted for that command alone.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
tree=$folder/tree
repository=$(cd "$(dirname "$0")/.." && pwd)

if [ ! -e "$tree/.made" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "the newest brokers are brought by debootstrap, for root on Debian only" >&2
        exit 1
    fi
    "$repository/tests/install_tools.sh" debootstrap
    mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
    [ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[.*\] \)\?\(http[^ ]*\).*/\2/p' /etc/apt/sources.list | head -n 1)
    rm -rf "$tree"
    packages=rabbitmq-server,redis-server,redis-sentinel,valkey-server
    packages=$packages,python3.14,python3.14-venv,python3.14-dev,gcc,g++,libc6-dev,make,git,ca-certificates,procps
    # In a name space of its own, so that no mount of it is left behind.
    unshare --mount debootstrap --variant=minbase --include=$packages sid "$tree" "$mirror" >"$folder/log" 2>&1 || {
        tail -n 5 "$folder/log" >&2
        exit 1
    }
    touch "$tree/.made"
fi

# Folders that pip takes packages from on this machine, if it is told of any: /a/b of /a/b/simple.
sources=$(python3 -m pip config list 2>/dev/null | grep -oE "/[^'\\\\ ]+" | tr -s / | cut -d / -f 1-3 | sort -u |
    tr '\n' ' ')

cat >"$folder/run" <<END
#!/bin/sh
# Run a command in the tree, in the current folder if that is there too, as the user RUN_AS.
export RUN_IN="\$PWD"
exec unshare --mount "$folder/mount" "\$@"
END
cat >"$folder/mount" <<END
#!/bin/sh
set -eu
user=\${RUN_AS:-root}
unset RUN_AS
for path in /tmp /dev /proc /etc/resolv.conf /etc/hosts /etc/ssl /etc/pip.conf /etc/xdg/pip "\${TMPDIR:-/tmp}" "\${HOME:-/root}" \\
    $sources "$repository"; do
    if [ "\$path" = / ]; then
        continue
    elif [ -d "\$path" ]; then
        mkdir -p "$tree\$path"
    elif [ -e "\$path" ]; then
        mkdir -p "$tree\$(dirname "\$path")"
        [ -e "$tree\$path" ] || touch "$tree\$path"
    else
        continue
    fi
    mount --rbind "\$path" "$tree\$path"
done
exec chroot --userspec="\$user" "$tree" sh -c 'cd "\$RUN_IN" 2>/dev/null || cd /; exec "\$@"' sh "\$@"
END
chmod +x "$folder/run" "$folder/mount"

# Behind the rest, with /proc and /dev/shm mounted: PostgreSQL is set up by running it. No server is wanted here.
if [ ! -e "$tree/usr/lib/postgresql" ]; then
    mkdir -p "$tree/etc/postgresql-common"
    echo "create_main_cluster = false" >"$tree/etc/postgresql-common/createcluster.conf"
    RUN_IN=/ DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 "$folder/run" sh -c 'apt-get update -qq
        exec apt-get install -qq --no-install-recommends -o Dpkg::Options::=--force-confold postgresql pgbouncer' \
        >>"$folder/log" 2>&1 || {
        tail -n 5 "$folder/log" >&2
        exit 1
    }
fi

wrap() { # FOLDER NAME PROGRAM [USER]
    mkdir -p "$folder/$1"
    printf '#!/bin/sh\nexec env RUN_AS=%s "%s" %s "$@"\n' "${4:-root}" "$folder/run" "$3" >"$folder/$1/$2"
    chmod +x "$folder/$1/$2"
}
for name in redis-server redis-cli redis-sentinel; do
    wrap rabbitmq $name /usr/bin/$name
    wrap valkey $name "/usr/bin/valkey${name#redis}"
done
for name in server ctl -plugins -queues -streams -upgrade; do
    name=rabbitmq$(echo "$name" | sed 's/^server/-server/')
    wrap rabbitmq "$name" "/usr/lib/rabbitmq/bin/$name"
done
wrap rabbitmq epmd /usr/bin/epmd
# PostgreSQL refuses root, as PgBouncer does.
for path in "$tree"/usr/lib/postgresql/*/bin; do
    for name in postgres initdb pg_ctl pg_basebackup; do
        wrap rabbitmq $name "${path#"$tree"}/$name" nobody
    done
done
wrap rabbitmq pgbouncer /usr/sbin/pgbouncer nobody
# The same choice for programs that are run in the tree themselves.
mkdir -p "$tree/opt/valkey"
ln -sf /usr/bin/valkey-server "$tree/opt/valkey/redis-server"
ln -sf /usr/bin/valkey-cli "$tree/opt/valkey/redis-cli"
