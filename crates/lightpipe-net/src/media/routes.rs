//! Which thread and peer a datagram belongs to, for datagrams that reached another thread's socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// A peer's place: its thread and its key there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) worker: usize,
    pub(crate) key: u64,
}

/// Routes of all threads. Read on a miss of a thread's own table only.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    by_ufrag: RwLock<HashMap<String, Place>>,
    by_address: RwLock<HashMap<SocketAddr, Place>>,
    /// Where our own connectivity checks went: an answer names no session, and may come before the viewer's first check.
    by_check: RwLock<HashMap<SocketAddr, Place>>,
}

impl Routes {
    pub(crate) fn of_ufrag(&self, ufrag: &str) -> Option<Place> {
        self.by_ufrag.read().unwrap_or_else(PoisonError::into_inner).get(ufrag).copied()
    }

    pub(crate) fn of_address(&self, address: SocketAddr) -> Option<Place> {
        self.by_address.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }
}

impl Routes {
    /// For STUN only: nothing else may come from an address that has not answered yet.
    pub(crate) fn of_check(&self, address: SocketAddr) -> Option<Place> {
        self.by_check.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }
}

/// A peer's entries. Dropping it removes them.
#[must_use = "the routes are removed when this is dropped"]
#[derive(Debug)]
pub(crate) struct Registration {
    routes: Arc<Routes>,
    place: Place,
    ufrags: Vec<String>,
    addresses: Vec<SocketAddr>,
    checks: Vec<SocketAddr>,
}

impl Registration {
    /// Addresses of checks kept per peer: its candidates, and what it was seen from.
    const MAX_CHECKS: usize = 80;

    /// Addresses kept per peer: a phone that walks between networks has few; more are an attack.
    const MAX_ADDRESSES: usize = 16;

    pub(crate) fn new(routes: Arc<Routes>, place: Place, ufrag: String) -> Self {
        let mut this = Self { routes, place, ufrags: Vec::new(), addresses: Vec::new(), checks: Vec::new() };
        this.add_ufrag(ufrag);
        this
    }

    /// The peer answers to one more ufrag (after an ICE restart both may come for a while).
    pub(crate) fn add_ufrag(&mut self, ufrag: String) {
        if !self.ufrags.contains(&ufrag) {
            self.routes.by_ufrag.write().unwrap_or_else(PoisonError::into_inner).insert(ufrag.clone(), self.place);
            self.ufrags.push(ufrag);
        }
    }

    /// The peer sends from this address: a check passed. Returns an address that gave way, if any.
    pub(crate) fn add_address(&mut self, address: SocketAddr) -> Option<SocketAddr> {
        if self.addresses.contains(&address) {
            return None;
        }
        let mut routes = self.routes.by_address.write().unwrap_or_else(PoisonError::into_inner);
        let evicted = (self.addresses.len() >= Self::MAX_ADDRESSES).then(|| self.addresses.remove(0));
        if let Some(old) = evicted {
            routes.remove(&old);
        }
        routes.insert(address, self.place);
        self.addresses.push(address);
        evicted
    }

    /// A check of ours goes to this address.
    pub(crate) fn add_check(&mut self, address: SocketAddr) {
        if self.checks.len() < Self::MAX_CHECKS && !self.checks.contains(&address) {
            self.routes.by_check.write().unwrap_or_else(PoisonError::into_inner).insert(address, self.place);
            self.checks.push(address);
        }
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut by_ufrag = self.routes.by_ufrag.write().unwrap_or_else(PoisonError::into_inner);
        for ufrag in &self.ufrags {
            by_ufrag.remove(ufrag);
        }
        drop(by_ufrag);
        for (map, addresses) in [(&self.routes.by_address, &self.addresses), (&self.routes.by_check, &self.checks)] {
            let mut map = map.write().unwrap_or_else(PoisonError::into_inner);
            for address in addresses {
                // A reloaded page may have the same address on another peer by now.
                if map.get(address) == Some(&self.place) {
                    map.remove(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_registration_frees_its_routes_and_nobody_elses() {
        let routes = Arc::new(Routes::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        let place = |key| Place { worker: 0, key };
        let mut old = Registration::new(Arc::clone(&routes), place(1), "old".into());
        old.add_address(address);
        old.add_check(address);
        let mut new = Registration::new(Arc::clone(&routes), place(2), "new".into());
        new.add_address(address);
        drop(old);
        assert_eq!(routes.of_ufrag("old"), None);
        assert_eq!(routes.of_check(address), None);
        assert_eq!(routes.of_address(address), Some(place(2)), "taken over by a reloaded page");
        drop(new);
        assert!(routes.of_address(address).is_none() && routes.of_ufrag("new").is_none());
    }

    #[test]
    fn addresses_of_one_peer_are_bounded() {
        let routes = Arc::new(Routes::default());
        let mut registration = Registration::new(Arc::clone(&routes), Place { worker: 0, key: 1 }, "u".into());
        for port in 1..100 {
            registration.add_address(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        assert_eq!(registration.addresses().len(), Registration::MAX_ADDRESSES);
        assert!(routes.of_address(SocketAddr::from(([127, 0, 0, 1], 1))).is_none());
    }
}
