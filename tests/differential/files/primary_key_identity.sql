-- What tells that an index is the table itself must survive new oids (ALTER TYPE) and new files (REINDEX).
create table t(a varchar(3) primary key, b text);
insert into t values('1','x'),('2','y');
alter table t alter a type varchar(9);
select * from t where a='1';
reindex table t;
set enable_seqscan=off;
select * from t where a='1';
insert into t values('1','dup');
alter table t alter a type text;
select * from t where a='2'; insert into t values('1','dup');
create table t2(a varchar(3) primary key, b text);
insert into t2 values('1','x'),('2','y');
reindex table t2;
alter table t2 alter a type varchar(9);
set enable_seqscan=off;
select * from t2 where a='1';
reindex index t2_pkey; \c
insert into t2 values('1','dup');
begin; alter table t2 alter a type varchar(20); rollback; reindex table t2; insert into t2 values('1','dup');
begin; alter table t2 alter a type varchar(20); savepoint a; reindex table t2; rollback to a; insert into t2 values ('9'); commit; insert into t2 values('1','dup');
begin; savepoint a; reindex table t2; rollback to a; alter table t2 alter a type varchar(21); commit; insert into t2 values('1','dup'); select * from t2 where a='9';
create type tyt as (a varchar(3)); create table ty of tyt (primary key (a)); insert into ty values('1');
alter type tyt alter attribute a type varchar(9) cascade; select * from ty where a='1'; reindex table ty; insert into ty values('1');
create table p5(a varchar(3) primary key) partition by range(a); create table p5c partition of p5 for values from ('0') to ('9'); insert into p5 values ('1');
alter table p5 alter a type varchar(9); reindex table p5; insert into p5 values ('1'); select * from p5 where a='1'; alter table p5 alter a type text; reindex table p5;insert into p5 values ('1');
vacuum full t; cluster t using t_pkey; insert into t values('1','dup'); alter table t alter a type varchar(100); insert into t values('1','dup');
create table t7(a int primary key, b int); insert into t7 values (1,1); alter table t7 drop constraint t7_pkey; insert into t7 values(1,2); create unique index u on t7(b); alter table t7 add primary key using index u; reindex table t7; insert into t7 values(1,2); insert into t7 values (1,3); select * from t7 where b=3; alter table t7 alter b type bigint; insert into t7 values(1,3);
