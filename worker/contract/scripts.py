"""Change records atomically, in Lua on the Redis server.

Every state transition of a record happens here atomically, so that only allowed transitions occur
even if a process dies. Index keys are built inside the scripts, so the server must be a single node
(no Redis Cluster), which the broker needs anyway.

All scripts share KEYS = record, lease, events stream and the first arguments
ARGV = index stem, id, channel, noun.
"""

__all__ = [
    "BEAT",
    "BIND_KEY",
    "BUCKET",
    "CANCEL",
    "CLAIM",
    "CREATE",
    "EVICT",
    "MOVE",
    "PROGRESS",
    "PUBLISH",
    "REAP",
    "RESTORE",
    "TAKE",
]

_PRELUDE = """
local record, lease, stream = KEYS[1], KEYS[2], KEYS[3]
local stem, id, channel, noun = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function announce(kind, data)
  local event = redis.call('XADD', stream, 'MAXLEN', '~', 1000, '*', 'type', kind, 'data', data)
  redis.call('PUBLISH', channel, cjson.encode(
    {noun = noun, id = id, event = event, type = kind, data = data}))
end

local function set_fields(fields)
  local flat = {}
  for name, value in pairs(cjson.decode(fields)) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  if #flat > 0 then redis.call('HSET', record, unpack(flat)) end
end

local held = record .. ':keys'  -- the unique keys of the record

local function mark(terminal)  -- for the archive: what it has to copy, and since when
  if terminal then
    local now = redis.call('TIME')
    redis.call('ZADD', stem .. ':ended', now[1] * 1000 + math.floor(now[2] / 1000), id)
  else
    redis.call('ZREM', stem .. ':ended', id)
  end
  if terminal or noun == 'cycle' then redis.call('SADD', stem .. ':fresh', id) end
end

local function owned()  -- by whom it is listed; what the installation sent itself is nobody's
  local owner = redis.call('HGET', record, 'api_key') or ''
  return stem .. ':owner:' .. (string.find(owner, ':', 1, true) and '' or owner)
end

local function list()
  if noun ~= 'cycle' then redis.call('ZADD', owned(), 0, id) end
end

local function leave_lane()
  local lane = redis.call('HGET', record, 'lane')
  if not lane then return end
  local owner = redis.call('HGET', record, 'api_key') or ''
  local waiting = stem .. ':lane:' .. lane .. ':' .. owner
  redis.call('HDEL', record, 'lane')
  redis.call('ZREM', waiting, id)
  if redis.call('EXISTS', waiting) == 0 then redis.call('ZREM', stem .. ':lane:' .. lane, owner) end
end

local function usage_of(owner, day)
  return string.sub(stem, 1, #stem - #noun - 7) .. ':quota:' .. owner .. ':day:' .. day
end

local function charge(owner, what, amount, limit)  -- what is used before, and whether there is room
  local day = math.floor(redis.call('TIME')[1] / 86400)
  local usage = usage_of(owner, day)
  local used = tonumber(redis.call('HGET', usage, what) or 0)
  if limit > 0 and used + amount > limit then return used, false end
  redis.call('HINCRBY', usage, what, amount)
  redis.call('EXPIRE', usage, 259200)
  return used, true
end

local THEIRS = {invalid_input = true, unknown_name = true}  -- ends of jobs that no fault of ours made

local function settle_charge(to)  -- an end: rows are counted, what a fault of ours ended is given back
  local owner = redis.call('HGET', record, 'api_key') or ''
  if owner == '' or string.find(owner, ':', 1, true) then return end
  if noun == 'batch' and to == 'ingested' then
    local summary = cjson.decode(redis.call('HGET', record, 'summary') or 'null')
    if type(summary) == 'table' and summary.observations > 0 then
      charge(owner, 'rows', summary.observations, 0)
    end
  elseif to == 'failed' then
    local charged = redis.call('HGET', record, 'charged')
    if not charged then return end
    local fault = cjson.decode(redis.call('HGET', record, 'error') or 'null')
    if noun == 'job' and type(fault) == 'table' and THEIRS[fault.code] then return end
    local what, amount, day = unpack(cjson.decode(charged))
    local usage = usage_of(owner, day)
    if redis.call('EXISTS', usage) == 1 then redis.call('HINCRBY', usage, what, -amount) end
    redis.call('HDEL', record, 'charged')  -- once
  end
end

local function move(from, to, terminal, data)
  mark(terminal)
  if terminal then settle_charge(to) end
  leave_lane()
  redis.call('HSET', record, 'state', to)
  redis.call('ZREM', stem .. ':state:' .. from, id)
  redis.call('ZADD', stem .. ':state:' .. to, 0, id)
  if terminal then
    redis.call('DEL', lease)
    local owner = redis.call('HGET', record, 'api_key')
    if owner and owner ~= '' then redis.call('ZREM', stem .. ':active:' .. owner, id) end
  end
  announce('state', data)
end

local function stale(token)
  return token ~= '' and redis.call('HGET', record, 'token') ~= token
end
"""

CREATE = (
    _PRELUDE
    + """
-- ARGV: 5 state, 6 kind, 7 owner, 8 fields, 9 event data, 10 lane or '', 11 charge or '';
-- KEYS from 4: unique keys
for i = 4, #KEYS do
  local known = redis.call('GET', KEYS[i])
  if known then
    local its = string.sub(record, 1, #record - #id) .. known .. ':keys'
    for j = 4, i - 1 do  -- the free ones before it
      redis.call('SET', KEYS[j], known)
      redis.call('SADD', its, KEYS[j])
    end
    return {'exists', known}
  end
end
if ARGV[11] ~= '' then
  local what, amount, limit = unpack(cjson.decode(ARGV[11]))
  local used, room = charge(ARGV[7], what, amount, limit)
  if not room then return {'quota', used} end
  local day = math.floor(redis.call('TIME')[1] / 86400)
  redis.call('HSET', record, 'charged', cjson.encode({what, amount, day}))
end
for i = 4, #KEYS do
  redis.call('SET', KEYS[i], id)
  redis.call('SADD', held, KEYS[i])
end
set_fields(ARGV[8])
if noun == 'cycle' then redis.call('SADD', stem .. ':fresh', id) end
redis.call('ZADD', stem .. ':all', 0, id)
redis.call('ZADD', stem .. ':state:' .. ARGV[5], 0, id)
redis.call('ZADD', stem .. ':kind:' .. ARGV[6], 0, id)
list()
if ARGV[7] ~= '' then redis.call('ZADD', stem .. ':active:' .. ARGV[7], 0, id) end
if ARGV[10] ~= '' then
  local lane = stem .. ':lane:' .. ARGV[10]
  redis.call('HSET', record, 'lane', ARGV[10])
  redis.call('ZADD', lane .. ':' .. ARGV[7], 0, id)
  -- One that joins is served after those that wait: its last turn is the newest.
  redis.call('ZADD', lane, 'NX', redis.call('GET', stem .. ':turn:' .. ARGV[10]) or 0, ARGV[7])
end
announce('state', ARGV[9])
return {'ok', id}
"""
)

BUCKET = """
-- KEYS: the bucket; ARGV: 1 what it holds, 2 ms in which it fills. Returns ms to wait, 0 if taken.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or now))
local after = full + ARGV[2] / ARGV[1]
if after - now > tonumber(ARGV[2]) + 0.001 then return math.ceil(after - now - ARGV[2]) end
redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.max(1, math.ceil(after - now)))
return 0
"""

BIND_KEY = (
    _PRELUDE
    + """
-- KEYS 4: a unique key, which stands for the record from now on unless it is held
if redis.call('EXISTS', record) == 0 then return {'missing', ''} end
if redis.call('SET', KEYS[4], id, 'NX') then redis.call('SADD', held, KEYS[4]) end
return {'ok', id}
"""
)

TAKE = (
    _PRELUDE
    + """
-- ARGV: 5 lane, 6 maximum of records, 7 of bytes, 8 waiting state, 9 working state, 10 lease ms,
-- 11 fields, 12 event data, 13 stem of records. Claims the oldest of each owner in turn.
local lane, turn = stem .. ':lane:' .. ARGV[5], stem .. ':turn:' .. ARGV[5]
redis.call('DEL', stem .. ':called:' .. ARGV[5])
local taken, bytes = {}, 0
while #taken < tonumber(ARGV[6]) do
  local owner = redis.call('ZRANGE', lane, 0, 0)[1]
  if not owner then break end
  id = redis.call('ZRANGE', lane .. ':' .. owner, 0, 0)[1]
  if not id then
    redis.call('ZREM', lane, owner)
  else
    record = ARGV[13] .. id
    lease, stream = record .. ':lease', record .. ':events'
    bytes = bytes + tonumber(redis.call('HGET', record, 'size') or 0)
    if #taken > 0 and bytes > tonumber(ARGV[7]) then break end
    redis.call('ZADD', lane, 'XX', redis.call('INCR', turn), owner)
    if redis.call('HGET', record, 'state') == ARGV[8] then
      local token = redis.call('HINCRBY', record, 'token', 1)
      redis.call('HINCRBY', record, 'attempts', 1)
      set_fields(ARGV[11])
      redis.call('SET', lease, token, 'PX', ARGV[10])
      move(ARGV[8], ARGV[9], false, ARGV[12])
      taken[#taken + 1] = redis.call('HGETALL', record)
    else
      redis.call('ZREM', lane .. ':' .. owner, id)
    end
  end
end
return {'ok', taken, redis.call('EXISTS', lane)}
"""
)

MOVE = (
    _PRELUDE
    + """
-- ARGV: 5 to, 6 ',from,from,', 7 token or '', 8 fields, 9 event data, 10 terminal,
-- 11 what a unique key holds from now on; KEYS 4: that key, if any
local from = redis.call('HGET', record, 'state')
if not from then return {'missing', ''} end
if stale(ARGV[7]) then return {'stale', from} end
if not string.find(ARGV[6], ',' .. from .. ',', 1, true) then return {'refused', from} end
set_fields(ARGV[8])
for i = 4, #KEYS do
  redis.call('SET', KEYS[i], ARGV[11])
  redis.call('SADD', held, KEYS[i])
end
if ARGV[10] ~= '1' then redis.call('DEL', lease) end
move(from, ARGV[5], ARGV[10] == '1', ARGV[9])
return {'ok', from}
"""
)

CLAIM = (
    _PRELUDE
    + """
-- ARGV: 5 waiting state, 6 working state, 7 lease ms, 8 fields, 9 event data
local from = redis.call('HGET', record, 'state')
if not from then return {'missing', ''} end
if from ~= ARGV[5] then return {'refused', from} end
local token = redis.call('HINCRBY', record, 'token', 1)
redis.call('HINCRBY', record, 'attempts', 1)
set_fields(ARGV[8])
redis.call('SET', lease, token, 'PX', ARGV[7])
move(from, ARGV[6], false, ARGV[9])
return {'ok', tostring(token)}
"""
)

BEAT = (
    _PRELUDE
    + """
-- ARGV: 5 token, 6 lease ms, 7 ',state,state,' in which the lease lives
local state = redis.call('HGET', record, 'state')
if not state then return {'missing', ''} end
if stale(ARGV[5]) then return {'stale', state} end
if not string.find(ARGV[7], ',' .. state .. ',', 1, true) then return {'refused', state} end
redis.call('SET', lease, ARGV[5], 'PX', ARGV[6])
return {'ok', state}
"""
)

PROGRESS = (
    _PRELUDE
    + """
-- ARGV: 5 token, 6 progress
local state = redis.call('HGET', record, 'state')
if not state then return {'missing', ''} end
if stale(ARGV[5]) then return {'stale', state} end
redis.call('HSET', record, 'progress', ARGV[6])
announce('progress', ARGV[6])
return {'ok', state}
"""
)

PUBLISH = (
    _PRELUDE
    + """
-- ARGV: 5 token, 6 working state. The gate in front of publication: one holder passes.
local state = redis.call('HGET', record, 'state')
if not state then return {'missing', ''} end
if stale(ARGV[5]) then return {'stale', state} end
if state ~= ARGV[6] then return {'refused', state} end
redis.call('HSET', record, 'publishing', 'true')
return {'ok', state}
"""
)

CANCEL = (
    _PRELUDE
    + """
-- ARGV: 5 fields of a cancelled record, 6 event data when cancelled, 7 when cancelling
local from = redis.call('HGET', record, 'state')
if not from then return {'missing', ''} end
if from == 'queued' then
  set_fields(ARGV[5])
  move(from, 'cancelled', true, ARGV[6])
  return {'ok', 'cancelled'}
end
if from == 'running' and redis.call('HGET', record, 'publishing') ~= 'true' then
  move(from, 'cancelling', false, ARGV[7])
  return {'ok', 'cancelling'}
end
if from == 'cancelling' or from == 'cancelled' then return {'ok', from} end
return {'refused', from}
"""
)

REAP = (
    _PRELUDE
    + """
-- ARGV: 5 working, 6 waiting, 7 failed, 8 lost workers allowed, 9 fields of a waiting record,
--       10 fields of a failed one, 11 fields of a cancelled one, 12-14 their event data
if redis.call('EXISTS', lease) == 1 then return {'held', ''} end
local from = redis.call('HGET', record, 'state')
if not from then return {'missing', ''} end
if noun == 'job' then redis.call('HSET', record, 'publishing', 'false') end
if from == 'cancelling' then
  set_fields(ARGV[11])
  move(from, 'cancelled', true, ARGV[14])
  return {'ok', 'cancelled'}
end
if from ~= ARGV[5] then return {'refused', from} end
if redis.call('HINCRBY', record, 'lost', 1) < tonumber(ARGV[8]) then
  set_fields(ARGV[9])
  redis.call('HINCRBY', record, 'token', 1)
  move(from, ARGV[6], false, ARGV[12])
  return {'ok', ARGV[6]}
end
set_fields(ARGV[10])
redis.call('HINCRBY', record, 'token', 1)
move(from, ARGV[7], true, ARGV[13])
return {'ok', ARGV[7]}
"""
)

RESTORE = (
    _PRELUDE
    + """
-- ARGV: 5 state, 6 kind, 7 owner, 8 fields, 9 whether it has ended, 10 past events, 11 event data
if redis.call('EXISTS', record) == 1 then return {'exists', redis.call('HGET', record, 'state')} end
set_fields(ARGV[8])
redis.call('ZADD', stem .. ':all', 0, id)
redis.call('ZADD', stem .. ':state:' .. ARGV[5], 0, id)
redis.call('ZADD', stem .. ':kind:' .. ARGV[6], 0, id)
list()
redis.call('DEL', stream)
for _, event in ipairs(cjson.decode(ARGV[10])) do
  redis.call('XADD', stream, event[1], 'type', event[2], 'data', event[3])
end
mark(ARGV[9] == '1')
if ARGV[9] ~= '1' then
  if ARGV[7] ~= '' then redis.call('ZADD', stem .. ':active:' .. ARGV[7], 0, id) end
  announce('state', ARGV[11])
end
return {'ok', ARGV[5]}
"""
)

EVICT = (
    _PRELUDE
    + """
-- ARGV: 5 kind, 6 when it ended as read, 7 seconds that its unique keys stay
local ended = redis.call('ZSCORE', stem .. ':ended', id)
if not ended or tonumber(ended) ~= tonumber(ARGV[6]) then return {'refused', ''} end
local state = redis.call('HGET', record, 'state')
for i = 4, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[7]) end
for _, key in ipairs(redis.call('SMEMBERS', held)) do redis.call('EXPIRE', key, ARGV[7]) end
redis.call('ZREM', owned(), id)
redis.call('DEL', record, lease, stream, held)
if state then redis.call('ZREM', stem .. ':state:' .. state, id) end
for _, index in ipairs({':all', ':kind:' .. ARGV[5], ':ended'}) do
  redis.call('ZREM', stem .. index, id)
end
redis.call('SREM', stem .. ':fresh', id)
return {'ok', id}
"""
)
