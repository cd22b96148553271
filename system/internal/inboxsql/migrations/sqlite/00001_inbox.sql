-- +goose Up
CREATE TABLE inbox_owners (
  shard       INTEGER NOT NULL PRIMARY KEY,
  incarnation INTEGER NOT NULL
);

CREATE TABLE inbox_devices (
  usr    INTEGER NOT NULL,
  dev    INTEGER NOT NULL,
  token  TEXT    NOT NULL,
  pushed INTEGER NOT NULL,
  PRIMARY KEY (usr, dev)
) WITHOUT ROWID;

-- seq is the rowid: appending goes to the end of the table. The index finds the
-- rows of a device and refuses a message that is present already.
CREATE TABLE inbox_rows (
  seq     INTEGER NOT NULL PRIMARY KEY,
  shard   INTEGER NOT NULL,
  usr     INTEGER NOT NULL,
  dev     INTEGER NOT NULL,
  mid     BLOB    NOT NULL,
  body_id INTEGER NOT NULL,
  body    BLOB,
  at      INTEGER NOT NULL
);
CREATE UNIQUE INDEX inbox_rows_message ON inbox_rows (usr, dev, mid);

CREATE TABLE inbox_bodies (
  id   INTEGER NOT NULL PRIMARY KEY,
  refs INTEGER NOT NULL,
  body BLOB    NOT NULL
);

CREATE TABLE inbox_marks (
  usr       INTEGER NOT NULL,
  dev       INTEGER NOT NULL,
  grp       INTEGER NOT NULL,
  peer      INTEGER NOT NULL,
  delivered INTEGER NOT NULL,
  seen      INTEGER NOT NULL,
  at        INTEGER NOT NULL,
  PRIMARY KEY (usr, dev, grp, peer)
) WITHOUT ROWID;
