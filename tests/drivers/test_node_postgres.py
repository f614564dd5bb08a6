"""node-postgres with pg-cursor, against the bare engine and RustyDB. Needs node, and npm to fetch the packages once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.target import Target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]

MODULES_VARIABLE = "RUSTYDB_TEST_NODE_MODULES"
SCRIPT = r"""
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');
(async () => {
  const pool = new Pool({ max: 5 });
  await pool.query('CREATE TABLE t (a int, b text, c jsonb)');
  await Promise.all([...Array(200).keys()].map(n =>
    pool.query({ name: 'insert', text: 'INSERT INTO t VALUES ($1, $2, $3)', values: [n, `row ${n}`, { n }] })));
  const sum = (await pool.query('SELECT sum(a)::int AS sum FROM t')).rows[0].sum;
  const client = await pool.connect();
  const cursor = client.query(new Cursor('SELECT a FROM t ORDER BY a'));
  const read = [];
  for (;;) { const rows = await cursor.read(33); if (!rows.length) break; read.push(...rows.map(r => r.a)); }
  await cursor.close();
  let code = '';
  await client.query('BEGIN');
  try { await client.query('SELECT 1/0'); } catch (error) { code = error.code; }
  await client.query('ROLLBACK');
  const heard = new Promise(resolve => client.on('notification', message => resolve(message.payload)));
  await client.query('LISTEN channel');
  await pool.query("NOTIFY channel, 'hello'");
  const payload = await heard;
  const multi = await client.query('SELECT 1 AS a; SELECT 2 AS b');
  client.release();
  await pool.end();
  console.log(JSON.stringify({ sum, read: read.length, last: read[199], code, payload, multi: multi.length }));
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `node_modules` with pg and pg-cursor."""
    if given := os.environ.get(MODULES_VARIABLE):
        return Path(given)
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "pg", "pg-cursor"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"npm could not install pg: {done.stderr.strip()[-200:]}")
    return folder / "node_modules"


def test_pool_cursor_notification_and_errors(database: Target, node_modules: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.js"
    script.write_text(SCRIPT)
    environment = {**os.environ, **database.environment(), "NODE_PATH": str(node_modules)}
    command = ["node", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = {"sum": 19900, "read": 200, "last": 199, "code": "22012", "payload": "hello", "multi": 2}
    assert json.loads(done.stdout) == expected
