CREATE TABLE c (id int PRIMARY KEY, t text, n numeric, ts timestamp, b bytea, arr int[], j jsonb);
COPY c FROM stdin;
1	plain	1.5	2020-01-01 00:00:00	\\x00ff	{1,2}	{"a": 1}
2	tab\tand\nnewline	-0.001	infinity	\\x	{}	[]
3	\N	\N	\N	\N	\N	\N
4	back\\slash \101\x42	NaN	1999-12-31 23:59:59.999999	\\xdeadbeef	{NULL,1}	"s"
\.
SELECT * FROM c ORDER BY id;
COPY c TO stdout;
COPY c (id, t) TO stdout;
COPY c (t, id) TO stdout WITH (FORMAT csv, HEADER, FORCE_QUOTE *);
COPY c TO stdout WITH (FORMAT csv, HEADER, NULL 'nil', DELIMITER ';', QUOTE '|');
COPY c TO stdout WITH (FORMAT binary);
COPY (SELECT id, t FROM c WHERE id < 3 ORDER BY id DESC) TO stdout;
COPY (VALUES (1, 'a'), (2, NULL)) TO stdout CSV;
COPY (DELETE FROM c WHERE id = 4 RETURNING id, t) TO stdout;
COPY (INSERT INTO c (id, t) VALUES (5, 'five') RETURNING *) TO stdout;
COPY (UPDATE c SET t = upper(t) RETURNING id, t) TO stdout;
COPY c (id, t) FROM stdin WITH (FORMAT csv);
10,"quoted, comma"
11,"with ""quotes"""
12,
13,""
14,"multi
line"
\.
SELECT id, t, t IS NULL AS isnull FROM c WHERE id >= 10 ORDER BY id;
COPY c (id, t) FROM stdin WITH (FORMAT csv, HEADER MATCH);
id,t
20,x
\.
COPY c (id, t) FROM stdin WITH (FORMAT csv, HEADER MATCH);
id,wrong
21,x
\.
COPY c (id, t) FROM stdin;
1	duplicate
\.
COPY c (id, t) FROM stdin;
30	ok
31	ok
30	twice
\.
SELECT count(*) FROM c WHERE id >= 30;
CREATE INDEX c_first ON c (t);
COPY c (id, t) FROM stdin;
31	ok
31	twice
1	duplicate too
32	ok
\.
SELECT count(*) FROM c WHERE id >= 30;
DROP INDEX c_first;
COPY c (id, t) FROM stdin;
32
\.
COPY c (id, t) FROM stdin;
33	a	b
\.
COPY c (id, t) FROM stdin;
notanumber	a
\.
COPY c (id, t) FROM stdin WITH (ON_ERROR ignore);
40	fine
bad	row
41	fine
\.
COPY c (id, t) FROM stdin WITH (ON_ERROR ignore, LOG_VERBOSITY verbose);
bad	row
42	fine
\.
SELECT id FROM c WHERE id >= 40 ORDER BY id;
COPY c (id, t) FROM stdin WHERE id > 50;
50	no
51	yes
52	yes
\.
COPY c (id, t) FROM stdin WITH (DEFAULT '\D', NULL 'NIL');
60	NIL
\.
SELECT id, t FROM c WHERE id > 49 ORDER BY id;
COPY nope FROM stdin;
1
\.
COPY c (nope) FROM stdin;
1
\.
COPY c FROM stdin WITH (FORMAT nope);
1
\.
CREATE TABLE d (id int GENERATED ALWAYS AS IDENTITY, v int DEFAULT 7, g int GENERATED ALWAYS AS (v * 2) STORED, CHECK (v < 100));
COPY d (v) FROM stdin;
1
2
\.
COPY d (v) FROM stdin;
3
100
\.
COPY d (g) FROM stdin;
3
\.
SELECT * FROM d ORDER BY id;
COPY d TO stdout WITH (FORMAT csv, HEADER);
CREATE TABLE p (k int, v text) PARTITION BY LIST (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2, 3);
COPY p FROM stdin;
1	one
2	two
3	three
1	uno
\.
COPY p FROM stdin;
4	none
\.
SELECT tableoid::regclass, * FROM p ORDER BY k, v;
COPY p TO stdout;
COPY (SELECT * FROM p ORDER BY k, v) TO stdout;
BEGIN;
CREATE TABLE fresh (a int PRIMARY KEY, b text);
COPY fresh FROM stdin WITH (FREEZE);
1	a
2	b
\.
SELECT * FROM fresh ORDER BY a;
INSERT INTO fresh VALUES (3, 'c');
UPDATE fresh SET b = 'z' WHERE a = 1;
COMMIT;
SELECT * FROM fresh ORDER BY a;
BEGIN;
TRUNCATE fresh;
COPY fresh FROM stdin;
7	seven
\.
SELECT * FROM fresh;
ROLLBACK;
SELECT count(*) FROM fresh;
CREATE TABLE trg (a int, b int);
CREATE FUNCTION dbl() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.a = 3 THEN RETURN NULL; END IF; NEW.b := NEW.a * 2; RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON trg FOR EACH ROW EXECUTE FUNCTION dbl();
COPY trg (a) FROM stdin;
1
3
5
\.
SELECT * FROM trg ORDER BY a;
CREATE VIEW cv AS SELECT id, t FROM c;
COPY cv TO stdout;
COPY (SELECT * FROM cv ORDER BY id LIMIT 2) TO stdout;
CREATE TABLE fk (id int REFERENCES c (id));
COPY fk FROM stdin;
1
2
\.
COPY fk FROM stdin;
1
999
\.
SELECT count(*) FROM fk;
CREATE TABLE eol (a text);
COPY eol FROM stdin WITH (FORMAT csv);
"\."
x
\.
SELECT * FROM eol ORDER BY a;
