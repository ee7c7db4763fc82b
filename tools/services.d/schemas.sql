-- A small cloud, as its databases know it: 100 projects, 40 hosts, 2,000 instances with networks, volumes and images.
-- A row that names another one, in the same database or in another service's, names one that is there. Every run makes
-- the same rows.

-- Ids, by what they are of and its number; in a database that is gone in the end.
SET NAMES utf8mb4;
CREATE OR REPLACE DATABASE scratch CHARACTER SET utf8mb4;
USE scratch;
CREATE FUNCTION uid(kind VARCHAR(20), n INT) RETURNS CHAR(36) DETERMINISTIC
  RETURN CAST(INSERT(INSERT(MD5(CONCAT(kind, n)), 13, 1, '4'), 17, 1, 'a') AS UUID);
CREATE FUNCTION tenant(kind VARCHAR(20), n INT) RETURNS CHAR(32) DETERMINISTIC
  RETURN MD5(CONCAT(kind, n));
CREATE FUNCTION mac(n INT) RETURNS CHAR(17) DETERMINISTIC
  RETURN CONCAT('fa:16:3e:', LPAD(HEX(n DIV 65536), 2, '0'), ':', LPAD(HEX(n DIV 256 MOD 256), 2, '0'), ':',
                LPAD(HEX(n MOD 256), 2, '0'));
CREATE FUNCTION moment(n INT) RETURNS DATETIME DETERMINISTIC
  RETURN '2026-01-05 08:00:00' + INTERVAL n * 97 SECOND;
CREATE TABLE instance AS
  SELECT seq AS n, uid('instance', seq) AS uuid, seq MOD 100 + 1 AS project, seq MOD 40 + 1 AS host,
         seq MOD 8 + 1 AS flavor, seq MOD 60 + 1 AS image,
         CASE WHEN seq MOD 50 = 0 THEN 'shelved_offloaded' WHEN seq MOD 50 < 5 THEN 'stopped' ELSE 'active' END AS state
  FROM seq_1_to_2000;

START TRANSACTION;

INSERT INTO keystone.project (id, name, extra, description, enabled, domain_id, parent_id, is_domain)
  VALUES ('default', 'Default', '{}', 'The default domain', 1, '<<keystone.domain.root>>', NULL, 1);
INSERT INTO keystone.project (id, name, extra, description, enabled, domain_id, parent_id, is_domain)
  SELECT tenant('project', seq), CONCAT('project-', seq), '{}', CONCAT('Cost centre ', 4000 + seq * 7), 1, 'default',
         'default', 0 FROM seq_1_to_100;
INSERT INTO keystone.user (id, extra, enabled, default_project_id, created_at, domain_id)
  SELECT tenant('user', seq), JSON_OBJECT('email', CONCAT('user-', seq, '@cloud.example')), 1,
         tenant('project', seq MOD 100 + 1), moment(seq), 'default' FROM seq_1_to_400;
INSERT INTO keystone.local_user (id, user_id, domain_id, name, failed_auth_count)
  SELECT seq, tenant('user', seq), 'default', CONCAT('user-', seq), 0 FROM seq_1_to_400;
INSERT INTO keystone.password (local_user_id, password_hash, created_at_int, created_at)
  SELECT seq, CONCAT('$2b$12$', LEFT(REPLACE(TO_BASE64(UNHEX(SHA2(seq, 384))), '+', '.'), 53)),
         UNIX_TIMESTAMP(moment(seq)) * 1000000, moment(seq) FROM seq_1_to_400;
INSERT INTO keystone.role (id, name, extra)
  SELECT tenant('role', seq), ELT(seq, 'admin', 'member', 'reader'), '{}' FROM seq_1_to_3;
INSERT INTO keystone.assignment (type, actor_id, target_id, role_id, inherited)
  SELECT 'UserProject', tenant('user', user.seq), tenant('project', user.seq MOD 100 + 1), tenant('role', role.seq), 0
  FROM seq_1_to_400 AS user, seq_2_to_3 AS role;
INSERT INTO keystone.region (id, description, extra) VALUES ('RegionOne', '', '{}');
INSERT INTO keystone.service (id, type, enabled, extra)
  SELECT tenant('service', seq), ELT(seq, 'identity', 'image', 'volumev3', 'network', 'compute', 'object-store'), 1,
         JSON_OBJECT('name', ELT(seq, 'keystone', 'glance', 'cinderv3', 'neutron', 'nova', 'swift')) FROM seq_1_to_6;
INSERT INTO keystone.endpoint (id, interface, service_id, url, extra, enabled, region_id)
  SELECT tenant('endpoint', service.seq * 10 + face.seq), ELT(face.seq, 'public', 'internal', 'admin'),
         tenant('service', service.seq), CONCAT('https://cloud.example:', 5000 + service.seq), '{}', 1, 'RegionOne'
  FROM seq_1_to_6 AS service, seq_1_to_3 AS face;

INSERT INTO glance.images (id, name, size, status, created_at, updated_at, deleted, disk_format, container_format,
                           checksum, owner, min_disk, min_ram, virtual_size, visibility, os_hash_algo, os_hash_value)
  SELECT uid('image', seq), CONCAT('debian-12-', 20260100 + seq), 300000000 + seq * 1048583, 'active', moment(seq),
         moment(seq + 1), 0, 'qcow2', 'bare', MD5(CONCAT('bytes', seq)), tenant('project', seq MOD 100 + 1), 2, 512,
         2147483648, IF(seq MOD 5 = 0, 'public', 'shared'), 'sha512', SHA2(CONCAT('bytes', seq), 512)
  FROM seq_1_to_60;
INSERT INTO glance.image_properties (image_id, name, value, created_at, deleted)
  SELECT uid('image', image.seq),
         ELT(property.seq, 'os_distro', 'os_version', 'hw_disk_bus', 'hw_vif_model', 'hw_qemu_guest_agent'),
         ELT(property.seq, 'debian', '12', 'virtio', 'virtio', 'yes'), moment(image.seq), 0
  FROM seq_1_to_60 AS image, seq_1_to_5 AS property;
INSERT INTO glance.image_locations (image_id, value, created_at, deleted, meta_data, status)
  SELECT uid('image', seq), CONCAT('rbd://', uid('ceph', 1), '/images/', uid('image', seq), '/snap'), moment(seq), 0,
         '{"store": "rbd"}', 'active' FROM seq_1_to_60;

INSERT INTO cinder.services (created_at, updated_at, deleted, host, `binary`, topic, report_count, disabled,
                             availability_zone, uuid)
  VALUES (moment(0), moment(9000), 0, 'control-1@rbd', 'cinder-volume', 'cinder-volume', 88231, 0, 'nova',
          uid('volumes', 1)),
         (moment(0), moment(9000), 0, 'control-1', 'cinder-scheduler', 'cinder-scheduler', 88247, 0, 'nova',
          uid('volumes', 2));
INSERT INTO cinder.volume_types (created_at, deleted, id, name, is_public)
  VALUES (moment(0), 0, uid('type', 1), 'ssd', 1);
INSERT INTO cinder.volumes (created_at, updated_at, deleted, id, user_id, project_id, host, size, availability_zone,
                            status, attach_status, launched_at, display_name, volume_type_id, bootable, multiattach,
                            service_uuid, use_quota)
  SELECT moment(n), moment(n + 1), 0, uid('volume', n), tenant('user', project), tenant('project', project),
         'control-1@rbd#rbd', n MOD 20 * 10 + 10, 'nova', 'in-use', 'attached', moment(n), CONCAT('data-', n),
         uid('type', 1), 0, 0, uid('volumes', 1), 1 FROM instance WHERE n <= 1200;
INSERT INTO cinder.volume_attachment (created_at, deleted, id, volume_id, attached_host, instance_uuid, mountpoint,
                                      attach_time, attach_mode, attach_status, connection_info, connector)
  SELECT moment(n), 0, uid('attachment', n), uid('volume', n), CONCAT('compute-', host), uuid, '/dev/vdb', moment(n),
         'rw', 'attached',
         JSON_OBJECT('driver_volume_type', 'rbd', 'name', CONCAT('volumes/volume-', uid('volume', n)), 'ports',
                     JSON_ARRAY('6789', '6789', '6789'), 'auth_username', 'cinder', 'attachment_id',
                     uid('attachment', n)),
         JSON_OBJECT('platform', 'x86_64', 'os_type', 'linux', 'ip', CONCAT('10.0.0.', 10 + host), 'host',
                     CONCAT('compute-', host), 'multipath', FALSE, 'mountpoint', '/dev/vdb', 'mode', 'rw')
  FROM instance WHERE n <= 1200;
INSERT INTO cinder.snapshots (created_at, deleted, id, volume_id, user_id, project_id, status, progress, volume_size,
                              display_name, volume_type_id, use_quota)
  SELECT moment(n), 0, uid('snapshot', n), uid('volume', n), tenant('user', project), tenant('project', project),
         'available', '100%', n MOD 20 * 10 + 10, CONCAT('before-upgrade-', n), uid('type', 1), 1
  FROM instance WHERE n <= 300;

INSERT INTO neutron.standardattributes (id, resource_type, created_at, updated_at, revision_number)
  SELECT seq, 'networks', moment(seq), moment(seq), 1 FROM seq_1_to_101
  UNION ALL SELECT 1000 + seq, 'networksegments', moment(seq), moment(seq), 0 FROM seq_1_to_101
  UNION ALL SELECT 2000 + seq, 'subnets', moment(seq), moment(seq), 0 FROM seq_1_to_101
  UNION ALL SELECT 3000 + seq, 'securitygroups', moment(seq), moment(seq), 4 FROM seq_1_to_100
  UNION ALL SELECT 4000 + seq, 'securitygrouprules', moment(seq), moment(seq), 0 FROM seq_1_to_400
  UNION ALL SELECT 5000 + seq, 'routers', moment(seq), moment(seq), 3 FROM seq_1_to_100
  UNION ALL SELECT 6000 + seq, 'floatingips', moment(seq), moment(seq), 2 FROM seq_1_to_400
  UNION ALL SELECT 10000 + seq, 'ports', moment(seq), moment(seq + 1), 4 FROM seq_1_to_2600;
-- One network a project, and one that leads outside.
INSERT INTO neutron.networks (project_id, id, name, status, admin_state_up, standard_attr_id, mtu)
  SELECT tenant('project', LEAST(seq, 100)), uid('network', seq), IF(seq = 101, 'outside', CONCAT('network-', seq)),
         'ACTIVE', 1, seq, IF(seq = 101, 1500, 1442) FROM seq_1_to_101;
INSERT INTO neutron.externalnetworks (network_id, is_default) VALUES (uid('network', 101), 1);
INSERT INTO neutron.networksegments (id, network_id, network_type, physical_network, segmentation_id, standard_attr_id)
  SELECT uid('segment', seq), uid('network', seq), IF(seq = 101, 'flat', 'geneve'), IF(seq = 101, 'outside', NULL),
         IF(seq = 101, NULL, 300 + seq), 1000 + seq FROM seq_1_to_101;
INSERT INTO neutron.ml2_geneve_allocations (geneve_vni, allocated)
  SELECT seq, seq BETWEEN 301 AND 400 FROM seq_1_to_4000;
INSERT INTO neutron.subnets (project_id, id, name, network_id, ip_version, cidr, gateway_ip, enable_dhcp,
                             standard_attr_id, in_use)
  SELECT tenant('project', LEAST(seq, 100)), uid('subnet', seq), CONCAT('subnet-', seq), uid('network', seq), 4,
         IF(seq = 101, '203.0.112.0/20', CONCAT('10.', seq, '.0.0/24')),
         IF(seq = 101, '203.0.112.1', CONCAT('10.', seq, '.0.1')), seq <> 101, 2000 + seq, 1 FROM seq_1_to_101;
INSERT INTO neutron.ipallocationpools (id, subnet_id, first_ip, last_ip)
  SELECT uid('pool', seq), uid('subnet', seq), CONCAT('10.', seq, '.0.2'), CONCAT('10.', seq, '.0.254')
  FROM seq_1_to_100;
INSERT INTO neutron.securitygroups (project_id, id, name, standard_attr_id, stateful)
  SELECT tenant('project', seq), uid('group', seq), 'default', 3000 + seq, 1 FROM seq_1_to_100;
INSERT INTO neutron.default_security_group (project_id, security_group_id)
  SELECT tenant('project', seq), uid('group', seq) FROM seq_1_to_100;
INSERT INTO neutron.securitygrouprules (project_id, id, security_group_id, remote_group_id, direction, ethertype,
                                        protocol, port_range_min, port_range_max, standard_attr_id)
  SELECT tenant('project', one.seq), uid('rule', one.seq * 4 + rule.seq), uid('group', one.seq),
         IF(rule.seq = 1, uid('group', one.seq), NULL), IF(rule.seq = 4, 'egress', 'ingress'), 'IPv4',
         IF(rule.seq IN (2, 3), 'tcp', NULL), ELT(rule.seq, NULL, 22, 443, NULL), ELT(rule.seq, NULL, 22, 443, NULL),
         4000 + (one.seq - 1) * 4 + rule.seq FROM seq_1_to_100 AS one, seq_1_to_4 AS rule;
-- Ports of instances; of routers, inside (from 2001) and outside (from 2101); of floating addresses (from 2201).
INSERT INTO neutron.ports (project_id, id, name, network_id, mac_address, admin_state_up, status, device_id,
                           device_owner, standard_attr_id, ip_allocation)
  SELECT tenant('project', project), uid('port', n), '', uid('network', project), mac(n), 1,
         IF(state = 'active', 'ACTIVE', 'DOWN'), uuid, 'compute:nova', 10000 + n, 'immediate' FROM instance
  UNION ALL
  SELECT tenant('project', seq), uid('port', 2000 + seq), '', uid('network', seq), mac(2000 + seq), 1, 'ACTIVE',
         uid('router', seq), 'network:router_interface', 12000 + seq, 'immediate' FROM seq_1_to_100
  UNION ALL
  SELECT '', uid('port', 2100 + seq), '', uid('network', 101), mac(2100 + seq), 1, 'ACTIVE', uid('router', seq),
         'network:router_gateway', 12100 + seq, 'immediate' FROM seq_1_to_100
  UNION ALL
  SELECT '', uid('port', 2200 + seq), '', uid('network', 101), mac(2200 + seq), 1, 'N/A', uid('floating', seq),
         'network:floatingip', 12200 + seq, 'immediate' FROM seq_1_to_400;
INSERT INTO neutron.ipallocations (port_id, ip_address, subnet_id, network_id)
  SELECT uid('port', n), CONCAT('10.', project, '.0.', 10 + n DIV 100), uid('subnet', project), uid('network', project)
  FROM instance
  UNION ALL
  SELECT uid('port', 2000 + seq), CONCAT('10.', seq, '.0.1'), uid('subnet', seq), uid('network', seq) FROM seq_1_to_100
  UNION ALL
  SELECT uid('port', 2100 + seq), CONCAT('203.0.', 113 + seq DIV 250, '.', seq MOD 250), uid('subnet', 101),
         uid('network', 101) FROM seq_1_to_500;
INSERT INTO neutron.ml2_port_bindings (port_id, host, vif_type, profile, vif_details)
  SELECT uid('port', n), CONCAT('compute-', host), 'ovs', '{}',
         '{"port_filter": true, "connectivity": "l2", "bridge_name": "br-int", "datapath_type": "system"}'
  FROM instance;
INSERT INTO neutron.ml2_port_binding_levels (port_id, host, level, driver, segment_id)
  SELECT uid('port', n), CONCAT('compute-', host), 0, 'ovn', uid('segment', project) FROM instance;
INSERT INTO neutron.securitygroupportbindings (port_id, security_group_id)
  SELECT uid('port', n), uid('group', project) FROM instance;
INSERT INTO neutron.routers (project_id, id, name, status, admin_state_up, gw_port_id, standard_attr_id)
  SELECT tenant('project', seq), uid('router', seq), CONCAT('router-', seq), 'ACTIVE', 1, uid('port', 2100 + seq),
         5000 + seq FROM seq_1_to_100;
INSERT INTO neutron.routerports (router_id, port_id, port_type)
  SELECT uid('router', seq), uid('port', 2000 + seq), 'network:router_interface' FROM seq_1_to_100
  UNION ALL SELECT uid('router', seq), uid('port', 2100 + seq), 'network:router_gateway' FROM seq_1_to_100;
INSERT INTO neutron.floatingips (project_id, id, floating_ip_address, floating_network_id, floating_port_id,
                                 fixed_port_id, fixed_ip_address, router_id, status, standard_attr_id)
  SELECT tenant('project', project), uid('floating', n),
         CONCAT('203.0.', 113 + (n + 100) DIV 250, '.', (n + 100) MOD 250), uid('network', 101), uid('port', 2200 + n),
         uid('port', n), CONCAT('10.', project, '.0.', 10 + n DIV 100), uid('router', project), 'ACTIVE', 6000 + n
  FROM instance WHERE n <= 400;

INSERT INTO nova_api.cell_mappings (created_at, id, uuid, name, transport_url, database_connection, disabled)
  VALUES (moment(0), 1, '00000000-0000-0000-0000-000000000000', 'cell0', 'none:///',
          'mysql+pymysql://nova:secret@db.cloud.example/nova_cell0', 0),
         (moment(0), 2, uid('cell', 1), 'cell1', 'rabbit://nova:secret@mq.cloud.example:5672/',
          'mysql+pymysql://nova:secret@db.cloud.example/nova_cell1', 0);
INSERT INTO nova_api.host_mappings (created_at, cell_id, host)
  SELECT moment(seq), 2, CONCAT('compute-', seq) FROM seq_1_to_40;
INSERT INTO nova_api.flavors (created_at, name, id, memory_mb, vcpus, swap, flavorid, rxtx_factor, root_gb,
                              ephemeral_gb, disabled, is_public)
  SELECT moment(0), CONCAT('m1.', seq), seq, 2048 * seq, seq, 0, uid('flavor', seq), 1, 20 * seq, 0, 0, 1
  FROM seq_1_to_8;
INSERT INTO nova_api.key_pairs (created_at, name, user_id, fingerprint, public_key, type)
  SELECT moment(seq), 'laptop', tenant('user', seq), MD5(CONCAT('key', seq)),
         CONCAT('ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI', LEFT(TO_BASE64(UNHEX(SHA2(seq, 256))), 43), ' user-', seq),
         'ssh'
  FROM seq_1_to_400;
INSERT INTO nova_api.instance_mappings (created_at, instance_uuid, cell_id, project_id, queued_for_delete, user_id)
  SELECT moment(n), uuid, 2, tenant('project', project), 0, tenant('user', project) FROM instance;
INSERT INTO nova_api.request_specs (created_at, instance_uuid, spec)
  SELECT moment(n), uuid, JSON_OBJECT(
           'nova_object.name', 'RequestSpec', 'nova_object.namespace', 'nova', 'nova_object.version', '1.14',
           'nova_object.data', JSON_OBJECT(
             'image', JSON_OBJECT('id', uid('image', image), 'name', CONCAT('debian-12-', 20260100 + image)),
             'project_id', tenant('project', project), 'user_id', tenant('user', project), 'num_instances', 1,
             'availability_zone', 'nova', 'instance_uuid', uuid, 'force_hosts', NULL, 'retry', NULL, 'limits', NULL,
             'flavor', JSON_OBJECT('id', flavor, 'flavorid', uid('flavor', flavor), 'memory_mb', 2048 * flavor)))
  FROM instance;

INSERT INTO nova_cell1.services (created_at, updated_at, host, `binary`, topic, report_count, disabled, deleted,
                                 last_seen_up, forced_down, version, uuid)
  SELECT moment(seq), moment(9000 + seq), CONCAT('compute-', seq), 'nova-compute', 'compute', 880000 + seq, 0, 0,
         moment(9000 + seq), 0, 66, uid('compute', seq) FROM seq_1_to_40;
INSERT INTO nova_cell1.compute_nodes (created_at, updated_at, vcpus, memory_mb, local_gb, vcpus_used, memory_mb_used,
                                      local_gb_used, hypervisor_type, hypervisor_version, cpu_info, running_vms,
                                      hypervisor_hostname, deleted, host_ip, host, ram_allocation_ratio,
                                      cpu_allocation_ratio, disk_allocation_ratio, uuid, mapped)
  SELECT moment(seq), moment(9000 + seq), 128, 1031892, 7150, 225, 460800, 4500, 'QEMU', 7002000,
         '{"arch": "x86_64", "model": "EPYC-Milan", "vendor": "AMD", "topology": {"cores": 32, "threads": 2}}', 50,
         CONCAT('compute-', seq, '.cloud.example'), 0, CONCAT('10.0.0.', 10 + seq), CONCAT('compute-', seq), 1, 4, 1,
         uid('node', seq), 1 FROM seq_1_to_40;
INSERT INTO nova_cell1.instances (created_at, updated_at, id, user_id, project_id, image_ref, launch_index, key_name,
                                  key_data, power_state, vm_state, memory_mb, vcpus, hostname, host, user_data,
                                  reservation_id, launched_at, display_name, availability_zone, locked,
                                  instance_type_id, uuid, root_device_name, config_drive, progress, root_gb,
                                  ephemeral_gb, node, deleted, cleaned, hidden)
  SELECT moment(n), moment(n + 1), n, tenant('user', project), tenant('project', project), uid('image', image), 0,
         'laptop',
         CONCAT('ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI', LEFT(TO_BASE64(UNHEX(SHA2(project, 256))), 43)),
         IF(state = 'active', 1, 4), state, 2048 * flavor, flavor, CONCAT('vm-', n), CONCAT('compute-', host),
         TO_BASE64(CONCAT('#cloud-config\nhostname: vm-', n, '\nssh_pwauth: false\npackages: [nginx, chrony]\n',
                          'write_files:\n- path: /etc/app/secret\n  content: ', SHA2(CONCAT('secret', n), 512), '\n')),
         CONCAT('r-', LEFT(MD5(n), 8)), moment(n + 1), CONCAT('vm-', n), 'nova', 0, flavor, uuid, '/dev/vda', '', 0,
         20 * flavor, 0, CONCAT('compute-', host, '.cloud.example'), 0, 0, 0 FROM instance;
INSERT INTO nova_cell1.instance_extra (created_at, deleted, instance_uuid, pci_requests, flavor, vcpu_model)
  SELECT moment(n), 0, uuid, '[]', JSON_OBJECT(
           'cur', JSON_OBJECT(
             'nova_object.name', 'Flavor', 'nova_object.namespace', 'nova', 'nova_object.version', '1.2',
             'nova_object.data', JSON_OBJECT(
               'id', flavor, 'name', CONCAT('m1.', flavor), 'memory_mb', 2048 * flavor, 'vcpus', flavor, 'root_gb',
               20 * flavor, 'ephemeral_gb', 0, 'flavorid', uid('flavor', flavor), 'swap', 0, 'rxtx_factor', 1.0,
               'vcpu_weight', 0, 'disabled', FALSE, 'is_public', TRUE, 'extra_specs',
               JSON_OBJECT('hw:cpu_policy', 'shared', 'quota:disk_total_iops_sec', '2000'))),
           'old', NULL, 'new', NULL),
         '{"nova_object.name": "VirtCPUModel", "nova_object.data": {"match": "exact", "mode": "host-model"}}'
  FROM instance;
INSERT INTO nova_cell1.instance_info_caches (created_at, updated_at, deleted, instance_uuid, network_info)
  SELECT moment(n), moment(n + 1), 0, uuid, JSON_ARRAY(JSON_OBJECT(
           'id', uid('port', n), 'address', mac(n), 'network', JSON_OBJECT(
             'id', uid('network', project), 'bridge', 'br-int', 'label', CONCAT('network-', project), 'subnets',
             JSON_ARRAY(JSON_OBJECT(
               'cidr', CONCAT('10.', project, '.0.0/24'), 'dns', JSON_ARRAY(), 'gateway',
               JSON_OBJECT('address', CONCAT('10.', project, '.0.1'), 'type', 'gateway', 'version', 4, 'meta',
                           JSON_OBJECT()),
               'ips', JSON_ARRAY(JSON_OBJECT('address', CONCAT('10.', project, '.0.', 10 + n DIV 100), 'type', 'fixed',
                                             'version', 4, 'meta', JSON_OBJECT(), 'floating_ips', JSON_ARRAY())),
               'routes', JSON_ARRAY(), 'version', 4, 'meta', JSON_OBJECT())),
             'meta', JSON_OBJECT('injected', FALSE, 'tenant_id', tenant('project', project), 'mtu', 1442)),
           'type', 'ovs', 'details', JSON_OBJECT('port_filter', TRUE, 'bridge_name', 'br-int'), 'devname',
           CONCAT('tap', LEFT(uid('port', n), 11)), 'active', TRUE, 'vnic_type', 'normal', 'preserve_on_delete', FALSE))
  FROM instance;
INSERT INTO nova_cell1.instance_system_metadata (created_at, deleted, instance_uuid, `key`, value)
  SELECT moment(n), 0, uuid,
         ELT(seq, 'image_os_distro', 'image_os_version', 'image_hw_disk_bus', 'image_hw_vif_model', 'image_min_disk',
             'image_min_ram', 'image_disk_format', 'image_container_format', 'image_base_image_ref', 'boot_roles',
             'owner_user_name', 'owner_project_name'),
         ELT(seq, 'debian', '12', 'virtio', 'virtio', 20 * flavor, '512', 'qcow2', 'bare', uid('image', image),
             'member,reader', CONCAT('user-', project), CONCAT('project-', project))
  FROM instance, seq_1_to_12;
INSERT INTO nova_cell1.instance_actions (created_at, updated_at, deleted, id, action, instance_uuid, request_id,
                                         user_id, project_id, start_time, finish_time)
  SELECT moment(n + seq * 100), moment(n + seq * 100), 0, n * 4 + seq, ELT(seq, 'create', 'reboot', 'stop', 'start'),
         uuid, CONCAT('req-', uid('request', n * 4 + seq)), tenant('user', project), tenant('project', project),
         moment(n + seq * 100), moment(n + seq * 100) + INTERVAL 21 SECOND
  FROM instance, seq_1_to_4;
INSERT INTO nova_cell1.instance_actions_events (created_at, updated_at, deleted, event, action_id, start_time,
                                                finish_time, result, host)
  SELECT moment(n + seq * 100), moment(n + seq * 100), 0,
         ELT(seq, 'compute__do_build_and_run_instance', 'compute_reboot_instance', 'compute_stop_instance',
             'compute_start_instance'),
         n * 4 + seq, moment(n + seq * 100), moment(n + seq * 100) + INTERVAL 20 SECOND, 'Success',
         CONCAT('compute-', host)
  FROM instance, seq_1_to_4;
INSERT INTO nova_cell1.virtual_interfaces (created_at, deleted, address, uuid, instance_uuid)
  SELECT moment(n), 0, CONCAT(mac(n), '/', uid('port', n)), uid('port', n), uuid FROM instance;
INSERT INTO nova_cell1.block_device_mapping (created_at, deleted, device_name, delete_on_termination, instance_uuid,
                                             source_type, destination_type, device_type, disk_bus, boot_index, image_id,
                                             uuid, volume_id, volume_size, attachment_id)
  SELECT moment(n), 0, '/dev/vda', 1, uuid, 'image', 'local', 'disk', 'virtio', 0, uid('image', image),
         uid('root', n), NULL, NULL, NULL FROM instance
  UNION ALL
  SELECT moment(n), 0, '/dev/vdb', 0, uuid, 'volume', 'volume', 'disk', 'virtio', NULL, NULL, uid('data', n),
         uid('volume', n), n MOD 20 * 10 + 10, uid('attachment', n) FROM instance WHERE n <= 1200;

COMMIT;
DROP DATABASE scratch;
