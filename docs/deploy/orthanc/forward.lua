-- Orthanc: forward chest films to `pipeline listen`, and nothing that came back from it.
--
-- In orthanc.json:
--   "LuaScripts": ["/etc/orthanc/forward.lua"],
--   "LuaHeartBeatPeriod": 5,         -- failed jobs are tried again
--   "JobsHistorySize": 10000,        -- or Orthanc forgets a failed job after ten others
--   "DicomModalities": { "cxr": ["CXR", "127.0.0.1", 11112] }

local NODE = 'cxr'          -- its name in DicomModalities
local TITLE = 'CXR'         -- its AE title
local MAKER = 'cxr-pipeline'
local FILMS = {
  ['1.2.840.10008.5.1.4.1.1.1'] = true,      -- Computed Radiography
  ['1.2.840.10008.5.1.4.1.1.1.1'] = true,    -- Digital X-Ray, for presentation
}
local failed = {}

function OnStoredInstance(instance, tags, metadata, origin)
  -- Answers are Segmentation, SR, Secondary Capture and Presentation State, so their classes stop the loop already.
  -- Where they come from and who made them are two more locks.
  if FILMS[metadata['SopClassUid'] or tags['SOPClassUID']]
      and origin['RemoteAet'] ~= TITLE
      and tags['Manufacturer'] ~= MAKER then
    SendToModality(instance, NODE)
  end
end

function OnJobFailure(job)
  failed[job] = true
end

function OnHeartBeat()
  for job in pairs(failed) do
    failed[job] = nil
    RestApiPost('/jobs/' .. job .. '/resubmit', '{}')
  end
end
