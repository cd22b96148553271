-- +goose Up
-- Ids of users are unsigned 64-bit numbers, stored as the signed number of the
-- same bits. Times are Unix milliseconds. ready: all parts are there and the hash
-- is right; messages: how many are to refer to it.
CREATE TABLE media_object (
  media_id BINARY(16) NOT NULL PRIMARY KEY,
  owner_id BIGINT NOT NULL,
  kind INTEGER NOT NULL,
  size BIGINT NOT NULL,
  sha256 BINARY(32) NOT NULL,
  messages INTEGER NOT NULL,
  received BIGINT NOT NULL,
  hash_state VARBINARY(255) NOT NULL,
  ready INTEGER NOT NULL,
  expires_ms BIGINT NOT NULL,
  INDEX media_object_owner (owner_id),
  INDEX media_object_expires (expires_ms)
);

CREATE TABLE media_part (
  media_id BINARY(16) NOT NULL,
  start BIGINT NOT NULL,
  size BIGINT NOT NULL,
  blob_key VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (media_id, start)
);

-- waiting: how many addressees of the message have not fetched it.
CREATE TABLE media_message (
  media_id BINARY(16) NOT NULL,
  message_id BINARY(16) NOT NULL,
  waiting INTEGER NOT NULL,
  PRIMARY KEY (media_id, message_id)
);

CREATE TABLE media_fetch (
  media_id BINARY(16) NOT NULL,
  message_id BINARY(16) NOT NULL,
  user_id BIGINT NOT NULL,
  PRIMARY KEY (media_id, message_id, user_id)
);

-- +goose Down
DROP TABLE media_fetch;
DROP TABLE media_message;
DROP TABLE media_part;
DROP TABLE media_object;
