-- +goose Up
-- What clients change. Administrators are those of the current version.
ALTER TABLE chat_group
  ADD COLUMN description VARCHAR(2048) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT '',
  ADD COLUMN icon VARCHAR(512) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT '',
  ADD COLUMN inactive BIGINT NOT NULL DEFAULT 0;
ALTER TABLE chat_member ADD COLUMN admin BIGINT NOT NULL DEFAULT 0;
UPDATE chat_member m JOIN chat_group g ON g.group_id = m.group_id AND g.owner_id = m.user_id
  SET m.admin = 1 WHERE m.left_version = 0;

-- Who asked for the version; all 0: an administrator of the system.
ALTER TABLE chat_change
  ADD COLUMN by_user BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN by_device BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN request_id BIGINT NOT NULL DEFAULT 0,
  ADD KEY chat_change_request (group_id, by_user, by_device, request_id);
