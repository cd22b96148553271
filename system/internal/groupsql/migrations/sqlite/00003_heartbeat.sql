-- +goose Up
-- One row, rewritten each second where there are replicas: how old a replica's
-- is says how far it is behind. at_us: Unix microseconds.
CREATE TABLE chat_heartbeat (
  id BIGINT NOT NULL PRIMARY KEY,
  at_us BIGINT NOT NULL
);
INSERT INTO chat_heartbeat (id, at_us) VALUES (1, 0);
