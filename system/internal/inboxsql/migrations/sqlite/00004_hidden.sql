-- +goose Up
-- Users who show others neither presence nor last seen.
CREATE TABLE inbox_hidden (
  usr INTEGER NOT NULL PRIMARY KEY
);
