-- +goose Up
CREATE TABLE inbox_owners (
  shard       SMALLINT NOT NULL PRIMARY KEY,
  incarnation BIGINT   NOT NULL
);

CREATE TABLE inbox_devices (
  usr    BIGINT NOT NULL,
  dev    BIGINT NOT NULL,
  token  VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  pushed BIGINT NOT NULL,
  PRIMARY KEY (usr, dev)
);

-- seq is the clustered key: appending goes to the end of the table. The index
-- finds the rows of a device and refuses a message that is present already.
CREATE TABLE inbox_rows (
  seq     BIGINT     NOT NULL PRIMARY KEY,
  shard   SMALLINT   NOT NULL,
  usr     BIGINT     NOT NULL,
  dev     BIGINT     NOT NULL,
  mid     BINARY(16) NOT NULL,
  body_id BIGINT     NOT NULL,
  body    MEDIUMBLOB,
  at      BIGINT     NOT NULL,
  UNIQUE KEY inbox_rows_message (usr, dev, mid)
);

CREATE TABLE inbox_bodies (
  id   BIGINT     NOT NULL PRIMARY KEY,
  refs BIGINT     NOT NULL,
  body MEDIUMBLOB NOT NULL
);

CREATE TABLE inbox_marks (
  usr       BIGINT NOT NULL,
  dev       BIGINT NOT NULL,
  grp       BIGINT NOT NULL,
  peer      BIGINT NOT NULL,
  delivered BIGINT NOT NULL,
  seen      BIGINT NOT NULL,
  at        BIGINT NOT NULL,
  PRIMARY KEY (usr, dev, grp, peer)
);
