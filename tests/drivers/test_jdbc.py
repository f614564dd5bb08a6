"""pgjdbc: its extended-protocol habits, cursors by fetch size, batches, metadata, COPY, notifications, large objects.

Needs a JDK (the program is one source file) and Debian's libpostgresql-jdbc-java.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.target import Target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120, method="signal")]

JAR = Path("/usr/share/java/postgresql.jar")
PROGRAM = r"""
import java.io.*;
import java.sql.*;
import org.postgresql.*;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.*;

public class Main {
  static String url; static String password; static String user;
  static Connection open() throws SQLException { return DriverManager.getConnection(url, user, password); }
  public static void main(String[] args) throws Exception {
    url = args[0]; user = args[1]; password = args[2];
    StringBuilder out = new StringBuilder();
    try (Connection c = open(); Statement s = c.createStatement()) {
      s.execute("CREATE TABLE t (a int PRIMARY KEY, b text)");
      try (PreparedStatement p = c.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
        for (int i = 0; i < 100; i++) { p.setInt(1, i); p.setString(2, "row " + i); p.addBatch(); }
        out.append("batch=").append(p.executeBatch().length);
      }
      int sum = 0;
      try (PreparedStatement p = c.prepareStatement("SELECT a FROM t WHERE a = ?")) {
        for (int i = 0; i < 20; i++) {
          p.setInt(1, i);
          try (ResultSet r = p.executeQuery()) { r.next(); sum += r.getInt(1); }
        }
      }
      out.append(" sum=").append(sum);
      c.setAutoCommit(false);
      s.setFetchSize(7);
      int read = 0;
      try (ResultSet r = s.executeQuery("SELECT a FROM t ORDER BY a")) { while (r.next()) read++; }
      out.append(" read=").append(read);
      Savepoint savepoint = c.setSavepoint();
      try { s.execute("SELECT 1/0"); } catch (SQLException e) { out.append(" state=").append(e.getSQLState()); }
      c.rollback(savepoint);
      c.commit();
      c.setAutoCommit(true);
      try (ResultSet r = c.getMetaData().getColumns(null, null, "t", null)) {
        StringBuilder columns = new StringBuilder();
        while (r.next()) columns.append(r.getString("COLUMN_NAME"));
        out.append(" columns=").append(columns);
      }
      CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
      out.append(" copied=").append(copy.copyIn("COPY t FROM STDIN", new StringReader("1000\tx\n1001\ty\n")));
      StringWriter rows = new StringWriter();
      copy.copyOut("COPY (SELECT a FROM t WHERE a >= 1000 ORDER BY a) TO STDOUT", rows);
      out.append(" out=").append(rows.toString().replace("\n", ","));
      c.setAutoCommit(false);
      LargeObjectManager large = c.unwrap(PGConnection.class).getLargeObjectAPI();
      long oid = large.createLO();
      LargeObject object = large.open(oid, LargeObjectManager.WRITE);
      object.write("hello".getBytes()); object.close();
      object = large.open(oid, LargeObjectManager.READ);
      out.append(" large=").append(new String(object.read(10))); object.close();
      c.rollback();
      c.setAutoCommit(true);
      try (Connection other = open(); Statement t = other.createStatement()) {
        s.execute("LISTEN channel");
        t.execute("NOTIFY channel, 'hello'");
        PGNotification[] heard = c.unwrap(PGConnection.class).getNotifications(5000);
        out.append(" heard=").append(heard.length == 1 ? heard[0].getParameter() : "nothing");
      }
      s.setQueryTimeout(1);
      try { s.execute("SELECT pg_sleep(10)"); }
      catch (SQLException e) { out.append(" timeout=").append(e.getSQLState()); }
    }
    System.out.println(out);
  }
}
"""
EXPECTED = (
    "batch=100 sum=190 read=100 state=22012 columns=ab copied=2 out=1000,1001, large=hello heard=hello timeout=57014"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("java") is None or not JAR.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a JDK and libpostgresql-jdbc-java are not installed")
    path = tmp_path_factory.mktemp("jdbc") / "Main.java"
    path.write_text(PROGRAM)
    return path


def test_a_java_program_works_through_pgjdbc(database: Target, program: Path) -> None:
    target = database
    url = f"jdbc:postgresql://{target.host}:{target.port}/{target.database}?sslmode=disable"
    done = subprocess.run(
        ["java", "-cp", str(JAR), str(program), url, target.user, target.password],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout.strip() == EXPECTED, done.stderr
