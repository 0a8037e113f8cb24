// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <new>

#include "base/errors.h"
#include "engine/engine_impl.h"

namespace thermoe {

Session* EngineImpl::FindSession(SessionId id) {
  const auto found = sessions_.find(id);
  return found == sessions_.end() || found->second->temporary ? nullptr : found->second.get();
}

Result<Session*> EngineImpl::IdleSession(SessionId id) {
  Session* session = FindSession(id);
  if (session == nullptr) return InvalidArgument("session {} is not open", id);
  if (session->busy) return InvalidArgument("session {} runs a request; wait for it or cancel it", id);
  return session;
}

int EngineImpl::OpenSessions() const {
  return static_cast<int>(std::count_if(sessions_.begin(), sessions_.end(), [](const auto& entry) { return !entry.second->temporary; }));
}

Session* EngineImpl::NewSession(bool temporary) {
  auto session = std::make_unique<Session>();
  session->id = next_id_++;
  session->temporary = temporary;
  // All that it can hold, so that steps allocate nothing.
  session->tokens.reserve(static_cast<size_t>(context_) + 1);
  session->kv.blocks.reserve(static_cast<size_t>(context_ / kKvBlock) + 1);
  Session* raw = session.get();
  sessions_.emplace(raw->id, std::move(session));
  return raw;
}

void EngineImpl::DropSession(Session* session) {
  KeepBenefit(*session);
  cache_->Release(&session->kv);
  sessions_.erase(session->id);
}

Result<SessionId> EngineImpl::OpenSession() try {
  // One place stays free for requests without a session that wait or run, or they could wait for ever.
  const auto is_temporary = [](const auto& active) { return active->session == nullptr || active->session->temporary; };
  const bool needed = std::any_of(queue_.begin(), queue_.end(), is_temporary);
  if (static_cast<int>(sessions_.size()) + (needed ? 1 : 0) >= options_.max_sequences) {
    return ResourceExhausted("all {} sequences are in use; close a session or raise max_sequences", options_.max_sequences);
  }
  return NewSession(false)->id;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out while a session was opened; close one or free some memory");
}

Result<SessionId> EngineImpl::ForkSession(SessionId id) try {
  const Result<Session*> parent = IdleSession(id);
  if (!parent.ok()) return parent.status();
  std::unique_ptr<Adaptation> ttt;
  if ((*parent)->ttt != nullptr) {
    ttt = (*parent)->ttt->Fork();
    if ((*parent)->ttt->automatic) (*parent)->ttt->automatic->deferred.clear();
  }
  const Result<SessionId> fork = OpenSession();
  if (!fork.ok()) return fork;
  Session* child = FindSession(*fork);
  child->ttt = std::move(ttt);
  child->tokens.assign((*parent)->tokens.begin(), (*parent)->tokens.end());
  child->kv = cache_->Fork((*parent)->kv);
  return fork;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out while a session was forked; close one or free some memory");
}

Status EngineImpl::TruncateSession(SessionId id, int tokens) {
  const Result<Session*> session = IdleSession(id);
  if (!session.ok()) return session.status();
  const auto length = static_cast<int>((*session)->tokens.size());
  if (tokens < 0 || tokens > length) return InvalidArgument("session {} holds {} tokens; it cannot be cut to {}", id, length, tokens);
  CutSession(*session, static_cast<size_t>(tokens));
  return Status::Ok();
}

Result<int> EngineImpl::SessionLength(SessionId id) const {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || found->second->temporary) return InvalidArgument("session {} is not open", id);
  return static_cast<int>(found->second->tokens.size());
}

Status EngineImpl::CloseSession(SessionId id) {
  const Result<Session*> session = IdleSession(id);
  if (!session.ok()) return session.status();
  DropSession(*session);
  return Status::Ok();
}

}  // namespace thermoe
