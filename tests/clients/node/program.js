// node-postgres: a pool, parameters, types, named prepared statements, transactions, errors, a conflict tried again.
"use strict";
const path = require("path");
const { Pool } = require(path.join(process.argv[3], "node_modules", "pg"));

async function main(url) {
  const pool = new Pool({ connectionString: url, max: 4 });
  await pool.query("DROP TABLE IF EXISTS node_line, node_order");
  await pool.query("CREATE TABLE node_order (id serial PRIMARY KEY, who text NOT NULL, at timestamptz, data jsonb, total numeric, tags text[], raw bytea)");
  await pool.query("CREATE TABLE node_line (order_id int REFERENCES node_order, n int, PRIMARY KEY (order_id, n))");
  for (let i = 1; i <= 10; i++) {
    const result = await pool.query(
      "INSERT INTO node_order (who, at, data, total, tags, raw) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
      [`who ${i}`, new Date(Date.UTC(2024, 0, i)), { i, list: [1, null] }, i * 1.25, ["a", String(i)], Buffer.from([0, i, 255])]
    );
    console.log("inserted", result.rows[0].id, result.command, result.rowCount);
  }
  const all = await pool.query("SELECT * FROM node_order WHERE id <= $1 ORDER BY id", [3]);
  for (const row of all.rows) console.log(JSON.stringify(row));
  for (let i = 0; i < 7; i++) {
    const result = await pool.query({ name: "by-id", text: "SELECT who FROM node_order WHERE id = $1", values: [i] });
    console.log("prepared", i, JSON.stringify(result.rows));
  }
  const several = await pool.query("SELECT 1 AS a; SELECT 2 AS b");
  console.log("several", several.map((r) => JSON.stringify(r.rows)).join(" "));
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    await client.query("INSERT INTO node_line VALUES (1, 1), (1, 2)");
    await client.query("SAVEPOINT s");
    await client.query("INSERT INTO node_line VALUES (999, 1)").catch((e) => console.log("refused", e.code, e.constraint));
    await client.query("ROLLBACK TO s");
    await client.query("COMMIT");
  } finally {
    client.release();
  }
  console.log("lines", (await pool.query("SELECT count(*)::int AS c FROM node_line")).rows[0].c);
  const counts = await Promise.all([...Array(20).keys()].map((i) => pool.query("SELECT $1::int + count(*)::int AS v FROM node_order", [i])));
  console.log("parallel", counts.map((r) => r.rows[0].v).join(","));
  await pool.query("SELECT * FROM nothing").catch((e) => console.log("error", e.code, e.message));
  await conflict(pool);
  await pool.query("DROP TABLE node_line, node_order");
  await pool.end();
}

async function conflict(pool) {
  const one = await pool.connect();
  const two = await pool.connect();
  let attempts = 0;
  for (;;) {
    attempts++;
    try {
      await two.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
      await two.query("SELECT total FROM node_order WHERE id = 1");
      if (attempts === 1) await one.query("UPDATE node_order SET total = total + 1 WHERE id = 1");
      await two.query("UPDATE node_order SET total = total + 10 WHERE id = 1");
      await two.query("COMMIT");
      break;
    } catch (error) {
      console.log("conflict", error.code);
      await two.query("ROLLBACK");
    }
  }
  console.log("attempts", attempts, (await one.query("SELECT total FROM node_order WHERE id = 1")).rows[0].total);
  one.release();
  two.release();
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
