-- +goose Up
-- WITHOUT ROWID: the rows are kept in the order of the primary key.
-- Ids are unsigned 64-bit numbers, stored as the signed number of the same bits.
CREATE TABLE chat_group (
  group_id INTEGER NOT NULL PRIMARY KEY,
  name VARCHAR(256) NOT NULL,
  owner_id BIGINT NOT NULL,
  version BIGINT NOT NULL
);

-- A user is a member in the versions from joined_version up to, and without,
-- left_version; left_version 0: has not left.
CREATE TABLE chat_member (
  group_id BIGINT NOT NULL,
  user_id BIGINT NOT NULL,
  joined_version BIGINT NOT NULL,
  left_version BIGINT NOT NULL,
  PRIMARY KEY (group_id, user_id, joined_version)
) WITHOUT ROWID;

-- Versions after the first. log_offset: the least position in the group's log
-- at which the change was seen, NULL while it is not known.
CREATE TABLE chat_change (
  group_id BIGINT NOT NULL,
  version BIGINT NOT NULL,
  log_offset BIGINT,
  PRIMARY KEY (group_id, version)
) WITHOUT ROWID;

-- Changes that may not be in the log yet.
CREATE TABLE chat_outbox (
  group_id BIGINT NOT NULL,
  version BIGINT NOT NULL,
  record BLOB NOT NULL,
  PRIMARY KEY (group_id, version)
) WITHOUT ROWID;
