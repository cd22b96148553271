-- +goose Up
-- Ids of users are unsigned 64-bit numbers, stored as the signed number of the
-- same bits. Times are Unix milliseconds. ready: all parts are there and the hash
-- is right; messages: how many are to refer to it.
CREATE TABLE media_object (
  media_id BLOB NOT NULL PRIMARY KEY,
  owner_id BIGINT NOT NULL,
  kind INTEGER NOT NULL,
  size BIGINT NOT NULL,
  sha256 BLOB NOT NULL,
  messages INTEGER NOT NULL,
  received BIGINT NOT NULL,
  hash_state BLOB NOT NULL,
  ready INTEGER NOT NULL,
  expires_ms BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX media_object_owner ON media_object (owner_id);
CREATE INDEX media_object_expires ON media_object (expires_ms);

CREATE TABLE media_part (
  media_id BLOB NOT NULL,
  start BIGINT NOT NULL,
  size BIGINT NOT NULL,
  blob_key VARCHAR(128) NOT NULL,
  PRIMARY KEY (media_id, start)
) WITHOUT ROWID;

-- waiting: how many addressees of the message have not fetched it.
CREATE TABLE media_message (
  media_id BLOB NOT NULL,
  message_id BLOB NOT NULL,
  waiting INTEGER NOT NULL,
  PRIMARY KEY (media_id, message_id)
) WITHOUT ROWID;

CREATE TABLE media_fetch (
  media_id BLOB NOT NULL,
  message_id BLOB NOT NULL,
  user_id BIGINT NOT NULL,
  PRIMARY KEY (media_id, message_id, user_id)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE media_fetch;
DROP TABLE media_message;
DROP TABLE media_part;
DROP TABLE media_object;
